"""The conditional GAN in YUV (Kraev, Safarani, Meyer; after arXiv:1702.06674): its recipe, and one that is stable.

python -m jaxcolor.main --config=configs/cgan.py --config.data.shards=CHURCH_SHARDS
python -m jaxcolor.main --config=configs/cgan.py:stable --config.data.shards=CHURCH_SHARDS

64-pixel photos (about 120,000 LSUN churches: prepare them with --size=64), RMSprop at 0.01 with decay 0.9, batch 128,
"around 5000 steps, which represents 5 epochs". The report shows pictures and prints no figure. Adam and Adagrad were tried,
too, and tanh outputs, which "didn't give decent results". `stable` is Adam at 2e-4 with beta1 0.5 (Radford, Metz, Chintala
2016), one-sided label smoothing and an L1 term of weight 10.
Color photos in several ways with `jaxcolor colorize --variants=N`.
"""

from jaxcolor import config as base


def get_config(variant: str = ''):
    """variant: '' (the report's) or 'stable'."""
    base.choose({'': None, 'stable': None}, variant)
    config = base.get_config()
    config.name = f'cgan-{variant}' if variant else 'cgan'
    config.model = base.cgan()
    config.task = base.adversarial()
    config.optimizer.update({'name': 'rmsprop', 'learning_rate': 0.01, 'rho': 0.9})
    config.data.flip = False  # the report mentions no augmentation
    config.data.crop = 64
    config.train.update({'batch_size': 128, 'steps': 5_000, 'eval_every': 500, 'checkpoint_every': 500})
    if variant == 'stable':
        config.task.update({'l1': 10.0, 'real_label': 0.9})
        config.optimizer.update({'name': 'adam', 'learning_rate': 2e-4, 'beta1': 0.5})
    return config
