"""The TensorFlow reimplementation of Let there be Color! with transposed convolutions (Jain): its recipes.

python -m jaxcolor.main --config=configs/ltbc_deconv.py --config.data.shards=CELEBA_SHARDS
python -m jaxcolor.main --config=configs/ltbc_deconv.py:linnaeus --config.data.shards=LINNAEUS_FLOWER_SHARDS

CelebA: 1,000 training photos, 200 epochs of 100 steps at batch 50. Linnaeus 5 `flower`: 30 epochs of 100 steps at
batch 50, 80 minutes on a Colab GPU (about 31 images/s). Batch norm after every convolution, no classifier, dense
widths 1024, 256, 512 as its table prints them. It plots accuracy and loss by epoch and prints no figure.
The report is silent on loss and optimizer: mean squared error and Adam at 1e-3 are the choice here.
"""

from jaxcolor import config as base

VARIANTS = {'': 200, 'linnaeus': 30}  # epochs of 100 steps


def get_config(variant: str = ''):
    """variant: '' (CelebA) or 'linnaeus'."""
    config = base.get_config()
    config.name = f'ltbc_deconv-{variant}' if variant else 'ltbc_deconv'
    config.model.update({'dense_widths': (1024, 256, 512), 'decoder': 'deconv', 'classes': 0, 'padding': 'SAME'})
    # "after every convolutional layer": the fusion's is one, dense layers are none.
    config.model.update({'batch_norm_dense': False, 'batch_norm_fusion': True})
    config.task.update({'reduction': 'mean', 'alpha': 0.0})
    config.optimizer.update({'name': 'adam', 'learning_rate': 1e-3, 'eps': 1e-8})
    config.train.update({'batch_size': 50, 'steps': 100 * base.choose(VARIANTS, variant), 'eval_every': 100})
    config.train.checkpoint_every = 1_000
    return config
