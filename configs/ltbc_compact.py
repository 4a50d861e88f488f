"""A small Let there be Color!, of nothing pretrained, for CPUs.

    python -m jaxcolor.main --config=configs/ltbc_compact.py --config.data.shards=SHARDS
    python -m jaxcolor.main --config=configs/ltbc_compact.py:regression --config.data.shards=SHARDS
    python -m jaxcolor.main --config=configs/ltbc_compact.py:small --config.data.shards=SHARDS_OF_80_PIXELS

The paper's network (see configs/ltbc.py) at a quarter of the width, without its classifier, for 128-pixel photos (shards of
about 144 pixels, or the photos' own 150). It sorts pixels into classes of colors (Zhang, Isola, Efros 2016), which at equal
numbers of photos came nearer to the truth than a regression of a* and b* did: configs/sweeps/README.md. `small` trains at 64
pixels, four times as fast.
"""

from jaxcolor import config as base

COLOR_CLASSES = 260  # what jaxcolor.tasks.color_classes.class_centers counts


def get_config(variant: str = ''):
    """variant: '' (classes of colors), 'regression', or 'small' (classes of colors at 64 pixels)."""
    size = base.choose({'': 128, 'regression': 128, 'small': 64}, variant)
    config = base.get_config()
    config.name = f'ltbc-compact-{variant}' if variant else 'ltbc-compact'
    config.model.update({'width': 0.25, 'classes': 0, 'global_size': size})
    if variant == 'regression':
        config.task.alpha = 0.0
    else:
        config.model.color_classes = COLOR_CLASSES
        config.task = base.color_classes()
        # Frequent colors at their own weight: rebalanced by 0.5, colors are more vivid and farther from the truth than
        # those of a gain (task.chroma_gain).
        config.task.update({'rebalance': 1.0, 'temperature': 0.6})
    config.optimizer.update({'name': 'adam', 'schedule': 'cosine', 'learning_rate': 2e-3, 'warmup_steps': 100})
    config.optimizer.base_batch_size = 32
    config.optimizer.weight_decay = 1e-2
    config.data.crop = size
    config.train.update({'batch_size': 32, 'steps': 2_000, 'ema': 0.998})
    config.train.update({'log_every': 100, 'eval_every': 500, 'checkpoint_every': 500, 'keep_best': 1})
    return config
