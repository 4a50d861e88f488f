"""Colorful Image Colorization (Zhang, Isola, Efros, ECCV 2016, arXiv:1603.08511): its network, trained from nothing.

    python -m jaxcolor.main --config=configs/eccv16.py --config.data.shards=IMAGENET_SHARDS

Crops of 176 pixels of ImageNet's photos at 256 (prepare them with --size=256), mirrored, 40 a step, about 450,000 steps;
Adam with beta1 0.9, beta2 0.99 and a weight decay of 1e-3, at 3.16e-5, times 0.316 every 215,000 steps: the solver and the
network files of its published code. 313 classes of colors (section 2.1), a soft encoding of width 5 (2.1), weights of rare
colors by lambda 0.5 (2.2), the annealed mean at T = 0.38 (2.3).

What differs: the prior of the classes is counted while training, not before; a true color counts for all classes near it,
not for five; gray photos count like others; layers start from random numbers, not from k-means; batch norm has a scale and a
bias, as in the code's PyTorch form. The kernels alone are decayed, by a term of the loss.
"""

from jaxcolor import config as base


def get_config():
    """The recipe."""
    config = base.get_config()
    config.name = 'eccv16'
    config.model = base.eccv16()
    config.task = base.color_classes()
    config.task.update({'rebalance': 0.5, 'sigma': 5.0, 'temperature': 0.38})
    config.task.kernel_l2 = 1e-3 / 2  # of which the gradient is 1e-3 times the kernel
    config.optimizer.update({'name': 'adam', 'learning_rate': 3.16e-5, 'beta1': 0.9, 'beta2': 0.99})
    config.optimizer.update({'schedule': 'step', 'decay_every': 215_000, 'decay_factor': 0.316})
    config.data.crop = 176
    config.train.update({'batch_size': 40, 'steps': 450_000})
    return config
