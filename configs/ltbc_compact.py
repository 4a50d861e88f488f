"""A small Let there be Color! for a CPU core.

    python -m jaxcolor.main --config=configs/ltbc_compact.py --config.data.shards=SHARDS
    python -m jaxcolor.main --config=configs/ltbc_compact.py:classes --config.data.shards=SHARDS

The paper's network (see configs/ltbc.py) at a quarter of the width, without its classifier, for 128-pixel photos (shards of
about 144 pixels, or the photos' own 150). `classes` sorts pixels into classes of colours (Zhang, Isola, Efros 2016) instead
of regressing a* and b*. configs/studies/compact.txt holds the variants that were compared.
"""

from configs import base

COLOR_CLASSES = 260  # what jaxcolor.tasks.color_classes.centers counts


def get_config(variant: str = ''):
    """variant: '' (regression) or 'classes'."""
    base.choose({'': None, 'classes': None}, variant)
    config = base.get_config()
    config.name = f'ltbc-compact-{variant}' if variant else 'ltbc-compact'
    config.model.update({'width': 0.25, 'classes': 0, 'global_size': 128})
    config.task.update({'reduction': 'mean', 'alpha': 0.0})
    if variant == 'classes':
        config.model.color_classes = COLOR_CLASSES
        config.task = base.color_classes()
    config.optimizer.update({'name': 'adam', 'schedule': 'cosine', 'learning_rate': 2e-3, 'warmup_steps': 100})
    config.optimizer.update({'weight_decay': 1e-2, 'eps': 1e-8})
    config.data.crop = 128
    config.train.update({'batch_size': 32, 'steps': 2_000, 'ema': 0.998})
    config.train.update({'log_every': 100, 'eval_every': 500, 'checkpoint_every': 500, 'keep_best': 1})
    return config
