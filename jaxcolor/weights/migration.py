"""Configs that earlier versions wrote -> today's fields: the one place that knows the old ones."""

from typing import Any

# Today's names of fields that were renamed, by section.
_RENAMED = {'task': {'answer_rebalance': 'inference_rebalance'}}
# Fields that came later, by section and the section's name ('' for any), with the value that means "as before". It is the
# behavior of that time, which today's default in config.py need not be.
_ADDED: dict[tuple[str, str], dict[str, Any]] = {
    ('model', 'ltbc'): {
        'dense_widths': [1024, 512, 256],
        'decoder': 'nearest',
        'global_dropout': 0.0,
        'color_classes': 0,
        'members': 1,
    },
    ('extractor', ''): {'name': '', 'weights': '', 'cached': False},
    ('task', 'regression'): {
        'error': 'squared',
        'huber_delta': 10.0,
        'chroma_weight': 0.0,
        'chroma_gain': 1.0,
        'mirror': False,
    },
    ('task', 'color_classes'): {'inference_rebalance': 1.0, 'chroma_gain': 1.0, 'mirror': False},
    ('optimizer', ''): {'scaling': 'none', 'base_batch_size': 128},
    ('data', ''): {
        'flip_vertical': False,
        'resized_crop': 0.0,
        'rotate': 0.0,
        'shift': 0.0,
        'brightness': 0.0,
        'placement': 'host',
    },
    ('train', ''): {'accumulation_steps': 1, 'heartbeat': 30, 'init_from': '', 'init_redraw': [], 'ema': 0.0},
}


def migrate(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json's content -> the same with today's fields; one of today comes out as it is."""
    migrated = {}
    for name, section in config.items():
        if not isinstance(section, dict):
            migrated[name] = section
            continue
        renamed = _RENAMED.get(name, {})
        section = {renamed.get(field, field): value for field, value in section.items()}
        # Empty tuples were once written as ('',).
        section = {field: [] if value == [''] else value for field, value in section.items()}
        for kind in {'', section.get('name', '')}:
            section = _ADDED.get((name, kind), {}) | section
        migrated[name] = section
    if 'model' in migrated:  # the section `extractor` itself came later
        migrated.setdefault('extractor', dict(_ADDED['extractor', '']))
    return migrated
