"""The TensorFlow reimplementation of Let there be Color! with transposed convolutions (Jain): its recipes.

jaxcolor prepare CELEBA --out=SHARDS --limit=train:1000,validation:200,test:200
python -m jaxcolor.main --config=configs/ltbc_deconv.py --config.data.shards=SHARDS

jaxcolor prepare LINNAEUS5 --out=SHARDS --classes=flower --split=train:0.9,validation:0.1,test:test
python -m jaxcolor.main --config=configs/ltbc_deconv.py:linnaeus --config.data.shards=SHARDS

CelebA: "Total 200 epochs with 100 steps per epoch and batch size 50"; Linnaeus 5, class `flower`: "30 epochs 100 steps
per epoch with batch size 50 (1hr 20 min training time with Google Colab GPU)", about 31 images/s. No classifier; dense
widths 1024, 256, 512 as its table prints them. It plots accuracy and loss by epoch (curves.png) and prints no figure. Loss
and optimizer are unstated: mean squared error and Adam at 1e-3 are the choice here.
"""

from jaxcolor import config as base

EPOCHS = {'': 200, 'linnaeus': 30}


def get_config(variant: str = ''):
    """variant: '' (CelebA) or 'linnaeus'."""
    epochs = base.choose(EPOCHS, variant)
    config = base.get_config()
    config.name = f'ltbc_deconv-{variant}' if variant else 'ltbc_deconv'
    config.model.update({'dense_widths': (1024, 256, 512), 'decoder': 'deconv', 'classes': 0, 'padding': 'SAME'})
    # "after every convolutional layer": the fusion's is one, dense layers are none.
    config.model.update({'batch_norm_dense': False, 'batch_norm_fusion': True})
    config.task.alpha = 0.0
    config.optimizer.update({'name': 'adam', 'learning_rate': 1e-3, 'base_batch_size': 50})
    config.data.flip = False  # the report mentions no augmentation
    config.train.update({'batch_size': 50, 'steps': None, 'epochs': epochs, 'epoch_steps': 100})
    config.train.update({'eval_every': None, 'eval_every_epochs': 1, 'checkpoint_every': 1_000})
    return config
