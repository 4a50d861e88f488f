"""The multi-GPU reimplementation of Let there be Color! in PyTorch (Jacob and Darcet): its recipe.

jaxcolor prepare PLACES365 --out=SHARDS --limit-per-class=1000 --split=train:0.8,validation:0.2
python -m jaxcolor.main --config=configs/ltbc_pytorch.py --config.data.shards=SHARDS

LTBC without batch norm, a 400-wide classifier of 365 scenes, Adam at 1e-4, batch 32, alpha 0.005 with mean
reductions, colors upsampled inside the network. The report trained on 292,000 photos of Places365 for 30 h on one
P100; its validation loss was best at epoch 14 (127,750 steps). It prints no error figure. On about 100 GPUs its
results were worse, as the batch grew with the GPUs while the learning rate stayed.
"""

from jaxcolor import config as base


def get_config():
    """The report's recipe."""
    config = base.get_config()
    config.name = 'ltbc_pytorch'
    config.model.update({'batch_norm': False, 'classes': 365, 'classifier_width': 400})
    config.task.update({'reduction': 'mean', 'loss_resolution': 'input', 'alpha': 0.005})
    config.optimizer.update({'name': 'adam', 'learning_rate': 1e-4, 'eps': 1e-8})
    config.train.update({'batch_size': 32, 'steps': 14 * 9_125, 'eval_every': 9_125, 'checkpoint_every': 9_125})
    config.train.keep_best = 3  # "the three best by validation loss, and the last"
    return config
