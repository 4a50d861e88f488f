"""Colors a photo with an exported ONNX file: python onnx_colorize.py MODEL.onnx PHOTO RESULT

It needs numpy, pillow and onnxruntime, and nothing of jaxcolor: copy it to where you want it.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
WHITE = np.array([0.95047, 1.0, 1.08883])  # D65


def lightness(rgb: np.ndarray) -> np.ndarray:
    """sRGB uint8 (H, W, 3) -> CIE L* (H, W) in [0, 100]."""
    x = rgb / 255
    y = np.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92) @ TO_XYZ[1]
    return 116 * np.where(y > (6 / 29) ** 3, np.cbrt(y), (29 / 6) ** 2 / 3 * y + 4 / 29) - 16


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (H, W, 3) -> sRGB uint8 (H, W, 3), clipped."""
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * WHITE
    x = np.clip(xyz @ np.linalg.inv(TO_XYZ).T, 0, 1)
    return np.round(255 * np.where(x > 0.0031308, 1.055 * x ** (1 / 2.4) - 0.055, 12.92 * x)).astype(np.uint8)


def colorize(model: str, photo: Image.Image) -> Image.Image:
    """Colors a photo: the network sees it at its own size, its a*b* are enlarged and joined to the photo's own L*."""
    onnxruntime.set_default_logger_severity(3)  # errors
    session = onnxruntime.InferenceSession(model)
    _, height, width, _ = session.get_inputs()[0].shape
    rgb = photo.convert('RGB')
    filter_ = Image.Resampling.BOX if min(rgb.size) > min(height, width) else Image.Resampling.BILINEAR
    small = lightness(np.asarray(rgb.resize((width, height), filter_))).astype(np.float32)
    (ab,) = session.run(['ab'], {'lightness': small[None, ..., None]})
    planes = [np.asarray(Image.fromarray(ab[0, ..., i]).resize(rgb.size, Image.Resampling.BICUBIC)) for i in range(2)]
    return Image.fromarray(lab_to_rgb(np.stack([lightness(np.asarray(rgb)), *planes], axis=-1)))


if __name__ == '__main__':
    colorize(sys.argv[1], ImageOps.exif_transpose(Image.open(sys.argv[2]))).save(sys.argv[3])
