"""The published networks by name: where their files are, under which license, and what was published about them."""

import dataclasses

_MIB = 2**20
_DDCOLOR = 'https://github.com/piddnad/DDColor/blob/master/LICENSE'
_DEOLDIFY = 'https://github.com/jantic/DeOldify/blob/master/LICENSE'
_ZHANG = 'https://github.com/richzhang/colorization/blob/master/LICENSE'


@dataclasses.dataclass(frozen=True)
class Published:
    """A published network.

    Attributes:
        name: by which jaxcolor calls it.
        title: authors, what it is, year.
        url: of the file.
        sha256: of the file, in hexadecimal digits: all 64, the first few, or '' where none is published.
        md5: of the file, where that is published in place of a SHA-256; else ''.
        bytes: the file's size, rounded where the published one is.
        license, license_url: of the weights.
        noncommercial: whether the license forbids commercial use.
        parameters: of the published network, as its file holds them; of the paper's layers for colors, in whole
            millions, where nothing but the file says it exactly.
        figures: what was published of its quality, and by whom; '' if there is nothing.
        verified: whether jaxcolor's authors measured those figures with the published file.
    """

    name: str
    title: str
    url: str
    sha256: str
    bytes: int
    license: str
    license_url: str
    parameters: int
    figures: str = ''
    md5: str = ''
    noncommercial: bool = False
    verified: bool = False

    @property
    def terms(self) -> str:
        """A sentence on the license."""
        return f'{self.name} ({self.title}) is under {self.license}, {self.license_url}.'


def _ddcolor(name, title, parameters, bytes, sha256='', figures=''):
    url = f'https://huggingface.co/piddnad/{name.replace("-", "_")}/resolve/main/pytorch_model.bin'
    return Published(name, title, url, sha256, bytes, 'Apache-2.0', _DDCOLOR, parameters, figures)


def _ddcolor_figures(fid, colorfulness, psnr, fid_50k, colorfulness_50k):
    val5k = f'ImageNet val5k, by its authors: FID {fid}, colorfulness {colorfulness}, PSNR {psnr} dB'
    return f'{val5k}; val50k: FID {fid_50k}, colorfulness {colorfulness_50k}'


def _deoldify(variant, url, parameters, bytes):
    title = f'Antic: DeOldify, {variant}, 2019'
    measured = 'of DeOldify, they do not say which, as the authors of DDColor measured it'
    figures = f'ImageNet val5k, {measured}: FID 6.59, colorfulness 21.29, PSNR 24.11 dB'
    return Published(f'deoldify-{variant}', title, url, '', bytes, 'MIT', _DEOLDIFY, parameters, figures)


def _iizuka(name, trained_on, file, md5, mebibytes):
    return Published(
        name,
        f'Iizuka, Simo-Serra, Ishikawa: Let there be Color!, trained on {trained_on}, 2016',
        f'http://iizuka.cs.tsukuba.ac.jp/data/{file}',
        '',
        mebibytes * _MIB,
        'CC BY-NC-SA 4.0',
        'https://creativecommons.org/licenses/by-nc-sa/4.0/',
        42_000_000,
        md5=md5,
        noncommercial=True,
    )


_ALL = (
    Published(
        'eccv16',
        'Zhang, Isola, Efros: Colorful Image Colorization, 2016',
        'https://colorizers.s3.us-east-2.amazonaws.com/colorization_release_v2-9b330a0b.pth',
        '9b330a0bae53f4ded77b1e23defbf78beaa09c10ebc4c4999e8e4f4a160b93f9',
        round(123.0 * _MIB),
        'BSD-2-Clause',
        _ZHANG,
        32_236_011,
        'ImageNet val5k, as the authors of DDColor measured it: FID 8.72, colorfulness 31.60, PSNR 22.64 dB',
    ),
    Published(
        'siggraph17',
        'Zhang, Zhu, Isola et al.: Real-Time User-Guided Image Colorization, 2017',
        'https://colorizers.s3.us-east-2.amazonaws.com/siggraph17-df00044c.pth',
        'df00044c',
        round(130.5 * _MIB),
        'BSD-2-Clause',
        _ZHANG,
        34_187_027,
    ),
    _iizuka('iizuka-places', 'Places', 'colornet.t7', 'c88fa2bb6dc9f942a492a7dc7009b966', 663),
    _iizuka('iizuka-imagenet', 'ImageNet', 'colornet_imagenet.t7', '09eddf45cd1b085fcb4cc880ba448072', 665),
    _ddcolor(
        'ddcolor-paper-tiny',
        'Kang et al.: DDColor, tiny, as in the paper, 2023',
        55_006_640,
        220_204_100,
        '8a1277bc90a1bfbb6d2d83933a9a6bc821931879ca93e26e4fcec12165d41fce',
        _ddcolor_figures('4.38', '37.66', '23.54', '1.23', '37.72'),
    ),
    _ddcolor(
        'ddcolor-paper',
        'Kang et al.: DDColor, large, as in the paper, 2023',
        227_869_328,
        911_687_492,
        figures=_ddcolor_figures('3.92', '38.26', '23.85', '0.96', '38.65'),
    ),
    _ddcolor('ddcolor-modelscope', 'Kang et al.: DDColor, large, on cleaned photos, 2023', 227_869_328, 911_687_492),
    _ddcolor('ddcolor-artistic', 'Kang et al.: DDColor, large, on more photos, 2023', 227_869_328, 911_687_492),
    _deoldify('artistic', 'https://data.deepai.org/deoldify/ColorizeArtistic_gen.pth', 63_646_881, 255_070_532),
    _deoldify(
        'stable',
        'https://huggingface.co/spensercai/DeOldify/resolve/main/ColorizeStable_gen.pth',
        218_222_197,
        873_920_916,
    ),
    _deoldify('video', 'https://data.deepai.org/deoldify/ColorizeVideo_gen.pth', 218_222_197, 873_920_916),
)
PUBLISHED: dict[str, Published] = {each.name: each for each in _ALL}
