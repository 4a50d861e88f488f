"""Converts configs of earlier versions to the fields of this one."""

from typing import Any

# Renamed fields by section: {old name: new name}.
_RENAMED = {'task': {'answer_rebalance': 'inference_rebalance'}}
# Fields added later, by section and the section's name ('' for any), with the value of the earlier behavior, which may
# differ from the default in config.py.
_ADDED: dict[tuple[str, str], dict[str, Any]] = {
    ('model', 'ltbc'): {
        'dense_widths': [1024, 512, 256],
        'decoder': 'nearest',
        'global_dropout': 0.0,
        'color_classes': 0,
        'members': 1,
        'batch_norm_dense': True,
        'batch_norm_fusion': False,
        'output_space': 'lab',
        'residual': False,
    },
    ('model', 'cgan'): {
        'output_activation': 'sigmoid',
        'generator_layers': 7,
        'leaky_slope': 0.2,
        'batch_norm_momentum': 0.9,
        'batch_norm_eps': 1e-5,
    },
    ('model', 'deepcolor'): {'use_features': True},
    **{('model', name): {'encoder_norm': 'trained'} for name in ('eccv16', 'siggraph17', 'iizuka')},
    ('extractor', ''): {'name': '', 'weights': '', 'cached': False},
    ('task', 'regression'): {
        'adversarial': 0.0,
        'error': 'squared',
        'huber_delta': 10.0,
        'chroma_weight': 0.0,
        'colorfulness': 0.0,
        'chroma_gain': 1.0,
        'mirror': False,
    },
    ('task', 'color_classes'): {'inference_rebalance': 1.0, 'chroma_gain': 1.0, 'mirror': False},
    ('optimizer', ''): {'scaling': 'none', 'base_batch_size': 128, 'warmup_epochs': 0.0, 'encoder_rate': 1.0},
    ('data', ''): {
        'flip_vertical': False,
        'resized_crop': 0.0,
        'rotate': 0.0,
        'shift': 0.0,
        'brightness': 0.0,
        'placement': 'host',
        'degraded': 0.5,
        **dict.fromkeys(('blur', 'exposure', 'vignette', 'gamma', 'grain', 'fading', 'texture', 'jpeg'), 0.0),
        'scratches': 0,
    },
    ('train', ''): {
        'accumulation_steps': 1,
        'steps_per_call': 1,
        'devices': 0,
        'heartbeat': 30,
        'deterministic': False,
        'init_from': '',
        'encoder_weights': 'random',
        'init_redraw': [],
        'ema': 0.0,
        'epochs': None,
        'epoch_steps': None,
        'eval_every_epochs': None,
    },
}


def migrate(config: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json of any version -> the same with the fields of this version."""
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
        if (name, section.get('name')) == ('model', 'ltbc'):
            # Transposed convolutions once had batch norm at the output, too; others never.
            section = {'batch_norm_output': section['decoder'] == 'deconv'} | section
        migrated[name] = section
    if 'model' in migrated:  # the section `extractor` was added later
        migrated.setdefault('extractor', dict(_ADDED['extractor', '']))
    return migrated
