"""DDColor (Kang et al., ICCV 2023, arXiv:2212.11613): its network, trained with those of its losses that need no download.

    python -m jaxcolor.main --config=configs/ddcolor.py --config.data.shards=IMAGENET_SHARDS
    python -m jaxcolor.main --config=configs/ddcolor.py:large --config.data.shards=IMAGENET_SHARDS

By the options file of its published code: photos of 256 pixels, mirrored, 16 a step, 400,000 steps; AdamW at 1e-4 with beta1
0.9, beta2 0.99, weight decay 0.01; 0.1 times the mean absolute error in units of a*b*, and 0.5 times the colorfulness loss
(section 3.4), 1 - (sigma + 0.3 mu) of the predicted photo. Here an error counts in units of 128, so both weights are
divided by 12.8, which Adam does not notice.

What differs: the perceptual loss is left out, which needs VGG16-BN's ImageNet weights, as is the GAN's (task.adversarial has
another discriminator), so colors will be paler. The encoder starts from random numbers, not from ImageNet; start from a
published network by --config.train.init_from. The published rate halves first after 80,000 steps, then every 40,000; here
every 40,000. Spectral norms are folded into the kernels, and the training does without.
"""

from jaxcolor import config as base

PIXEL_WEIGHT, COLORFULNESS_WEIGHT = 0.1, 0.5


def get_config(variant: str = ''):
    """variant: '' (tiny) or 'large'."""
    base.choose(dict.fromkeys(('', 'large')), variant)
    config = base.get_config()
    config.name = f'ddcolor-{variant or "tiny"}'
    config.model = base.ddcolor()
    config.model.variant = variant or 'tiny'
    config.task.update({'alpha': 0.0, 'error': 'absolute', 'colorfulness': COLORFULNESS_WEIGHT / (128 * PIXEL_WEIGHT)})
    config.optimizer.update({'name': 'adam', 'learning_rate': 1e-4, 'beta1': 0.9, 'beta2': 0.99, 'weight_decay': 0.01})
    config.optimizer.update({'schedule': 'step', 'decay_every': 40_000, 'decay_factor': 0.5})
    config.data.crop = 256
    config.train.update({'batch_size': 16, 'steps': 400_000})
    return config
