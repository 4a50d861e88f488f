"""Files to mutate: small ones of every format, with all that they can hold."""

import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin


def photo_seeds():
    """{suffix: [file, ...]} of all formats, small, with all that a file can hold beside its pixels."""
    import odd_photos

    def encoded(image, **options):
        if 'append_images' in options:  # saving leaves traces on an image
            options['append_images'] = [frame.copy() for frame in options['append_images']]
        return odd_photos.encoded(image.copy(), **options)

    photo = Image.fromarray(odd_photos.quadrants()[::2, ::2])
    frames = [photo.rotate(90 * turn) for turn in range(3)]
    exif = Image.Exif()
    exif[0x013B], exif[0x0112] = 'A. Painter', 6
    exif[0x8769], exif[0x8825] = {0x9003: '2001:01:01 00:00:00', 0x829A: 0.5, 0x927C: b'maker'}, {1: 'N', 2: (1.0, 2.0, 3.5)}
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_itxt('XML:com.adobe.xmp', '<x tiff:Orientation="6"/>')
    every = {'save_all': True, 'append_images': frames[1:]}
    gray16 = Image.fromarray(np.arange(32 * 24, dtype=np.uint16).reshape(24, 32) * 80)
    gray_float = Image.fromarray(np.linspace(0, 1, 32 * 24, dtype=np.float32).reshape(24, 32))
    transparent = photo.convert('RGBA')
    transparent.putalpha(Image.linear_gradient('L').resize(photo.size))
    seeds = {
        '.jpg': [
            encoded(photo, format='JPEG', exif=exif, icc_profile=icc, xmp=b'<x tiff:Orientation="6"/>', dpi=(300, 300)),
            encoded(photo.convert('CMYK'), format='JPEG', progressive=True),
            encoded(photo, format='MPO', **every),
        ],
        '.png': [
            encoded(transparent, format='PNG', exif=exif, icc_profile=icc, pnginfo=text, dpi=(300, 300)),
            encoded(photo.convert('P'), format='PNG', transparency=3),
            encoded(gray16, format='PNG'),
            encoded(photo, format='PNG', duration=100, loop=2, **every),
        ],
        '.webp': [encoded(photo, format='WEBP', exif=exif), encoded(transparent, format='WEBP', duration=100, **every)],
        '.tif': [
            encoded(photo, format='TIFF', **every),
            encoded(photo, format='TIFF', compression='tiff_lzw'),
            encoded(photo, format='TIFF', compression='tiff_adobe_deflate', icc_profile=icc),
            encoded(photo.convert('CMYK'), format='TIFF', compression='jpeg'),
            encoded(gray16, format='TIFF'),
            encoded(gray_float, format='TIFF'),
        ],
        '.gif': [encoded(photo.convert('P'), format='GIF', duration=100, loop=1, **every)],
        '.bmp': [encoded(photo, format='BMP')],
        '.tga': [encoded(photo, format='TGA', compression='tga_rle')],
        '.ppm': [encoded(photo, format='PPM'), b'P5 32 24 65535\n' + bytes(range(256)) * 6],
        '.jp2': [encoded(photo, format='JPEG2000')],
        '.pcx': [encoded(photo, format='PCX')],
        '.sgi': [encoded(photo, format='SGI', rle=True)],
        '.psd': [b'8BPS\0\1' + bytes(7) + b'\3\0\0\0\x18\0\0\0\x20\0\x08\0\3' + bytes(14) + bytes(range(256)) * 9],
    }
    for name, suffix in (('AVIF', '.avif'), ('HEIF', '.heic'), ('JXL', '.jxl')):
        if name in Image.SAVE:
            seeds[suffix] = [encoded(photo, format=name, exif=exif.tobytes())]
    try:
        import imagecodecs
        import tifffile
    except ImportError:
        return seeds
    deep = np.random.default_rng(0).integers(0, 65536, (24, 32, 4), np.uint16)
    seeds['.png'] += [imagecodecs.png_encode(deep), imagecodecs.png_encode(np.ascontiguousarray(deep[..., :3]))]
    for options in ({}, {'compression': 'lzw', 'predictor': True, 'iccprofile': icc}, {'planarconfig': 'separate'}):
        file = io.BytesIO()
        tifffile.imwrite(file, np.moveaxis(deep, 2, 0) if 'planarconfig' in options else deep, photometric='rgb', **options)
        seeds['.tif'].append(file.getvalue())
    return seeds


def weight_seeds(kind):
    """{suffix: [file, ...]} of a kind of weight files."""
    import h5py
    import safetensors.numpy
    from test_damaged_files import WRITERS

    arrays = {'conv.weight': np.ones((4, 3, 3, 3), np.float32), 'conv.bias': np.zeros(4, np.float32)}
    if kind == 'safetensors':
        return {'.safetensors': [safetensors.numpy.save(arrays, {'format': 'pt'}), safetensors.numpy.save(arrays)]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'a'
        if kind != 'keras':
            WRITERS[kind](path)
            return {'.t7' if kind == 'torch7' else '.pth': [path.read_bytes()]}
        seeds = {'.h5': [], '.keras': []}
        for named in (True, False):
            with h5py.File(path, 'w') as file:
                if named:
                    group = file.create_group('conv')
                    group['kernel'] = arrays['conv.weight']
                    group.attrs['weight_names'] = [b'kernel']
                else:
                    file['layers/conv2d/vars/0'] = arrays['conv.weight']
            seeds['.h5'].append(path.read_bytes())
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('model.weights.h5', seeds['.h5'][1])
        seeds['.keras'].append(path.read_bytes())
    return seeds
