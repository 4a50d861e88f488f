"""The VGG16-fusion report (Pradhan, Gupta, Gaurav): its recipe.

python -m jaxcolor.main --config=configs/vgg_fusion.py --config.data.shards=SHARDS

256-pixel photos (about 9,500 of Unsplash for training, 500 for validation), Adam at an initial 1e-3, batch 32, 2,000
epochs; "horizontal/vertical flips, rotations, and variations in the brightness of images, horizontal/vertical shifts". The
loss is its eq. (1): the squared error over 2HW with ab in [-1, 1], which is the mean over pixels and channels. The report
shows pictures and prints no figure. It gives no amounts for the augmentation: 15 degrees, 10 %, a fifth in light are the
choice here. VGG16's weights are looked up or downloaded: --config.extractor.weights=FILE names a published file.
"""

from jaxcolor import config as base


def get_config():
    """The report's recipe."""
    config = base.get_config()
    config.name = 'vgg_fusion'
    config.model = base.vgg_fusion()
    config.extractor.name = 'vgg16'
    config.task.update({'loss_resolution': 'input', 'alpha': 0.0})
    config.optimizer.update({'name': 'adam', 'learning_rate': 1e-3, 'base_batch_size': 32})
    config.data.update({'crop': 256, 'flip_vertical': True, 'rotate': 15.0, 'shift': 0.1, 'brightness': 0.2})
    config.train.update({'batch_size': 32, 'steps': None, 'epochs': 2_000, 'eval_every': None, 'eval_every_epochs': 10})
    return config
