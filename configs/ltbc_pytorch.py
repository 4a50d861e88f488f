"""The multi-GPU reimplementation of Let there be Color! in PyTorch (Jacob and Darcet): its recipe.

jaxcolor prepare PLACES365 --out=SHARDS --limit-per-class=1000 --split=train:0.8,validation:0.2,test:test
python -m jaxcolor.main --config=configs/ltbc_pytorch.py --config.data.shards=SHARDS
jaxcolor evaluate --model=runs/ltbc_pytorch --splits=test --grid-photos=32

LTBC without batch norm, with 400 hidden units and 365 classes in its classifier, Adam at 1e-4, batch 32, alpha 0.005, colors
upsampled inside the network. The report trained on 292,000 photos of Places365 for 30 h on one P100 and "stopped the
training at 14 epochs, at which the validation loss was best". It prints no error figure, but 32 photos of "a completely
random batch selection in the test data". On "about a 100 less powerful GPUs" training "wound up giving poor results for
unknown reason, possibly related to the fact that distributing the training implies a much larger effective batch size"; what
the reason is and what helps: configs/sweeps/large_batch.md.

Its published code crops 224 pixels at random and flips left to right. It scales a*b* as (ab + 128) / 256 going in, but
254 x - 127 coming out; here both directions are the first.
"""

from jaxcolor import config as base


def get_config():
    """The report's recipe."""
    config = base.get_config()
    config.name = 'ltbc_pytorch'
    config.model.update({'batch_norm': False, 'classes': 365, 'classifier_width': 400})
    config.task.update({'loss_resolution': 'input', 'alpha': 0.005})
    config.optimizer.update({'name': 'adam', 'learning_rate': 1e-4, 'base_batch_size': 32})
    config.train.update({'batch_size': 32, 'steps': None, 'epochs': 14, 'eval_every': None, 'eval_every_epochs': 1})
    config.train.grid_photos = 32  # as many as the report shows
    return config
