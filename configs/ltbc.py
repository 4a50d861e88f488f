"""Let there be Color! (Iizuka, Simo-Serra, Ishikawa, SIGGRAPH 2016): the paper's recipe.

python -m jaxcolor.main --config=configs/ltbc.py --config.data.shards=PLACES205_SHARDS

Adadelta, batch 128, 256-pixel photos cropped to 224 and flipped, alpha 1/300, 200,000 steps. The paper trained 3
weeks on one K80 and reports colors that its users took for real in 92.6 % of cases; it gives no error on ab. It
leaves open: Adadelta's rho and epsilon (0.95 and 1e-6 here, from the Adadelta paper) and where batch norm stands. The
squared error is the mean over pixels and channels, with which alpha makes the two losses alike; summed, as the paper's
Frobenius norm reads, the colors' would be thousands of times the class's: configs/sweeps/README.md.

python -m jaxcolor.main --config=configs/ltbc.py:quickstart

The same network at a quarter of the width, on the bundled photos at 128 pixels: minutes on two CPU cores, and the
training photos in about their own colors (the README says what was measured). It shows that everything works; from
20 photos no network learns to color others.
"""

from jaxcolor import config as base


def get_config(variant: str = ''):
    """variant: '' (the paper's) or 'quickstart'."""
    base.choose({'': None, 'quickstart': None}, variant)
    config = base.get_config()
    config.name = 'ltbc'
    if variant == 'quickstart':
        config.name = 'ltbc-quickstart'
        config.model.width = 0.25
        config.model.classes = 0
        config.model.global_size = 128
        config.optimizer.update({'name': 'adam', 'schedule': 'cosine', 'learning_rate': 2e-3, 'warmup_steps': 20})
        config.optimizer.update({'weight_decay': 1e-4, 'base_batch_size': 16})
        config.data.crop = 128
        config.data.flip = False  # 20 photos are learnt by heart here; mirrored they would be 40
        config.train.steps = 400
        config.train.batch_size = 16  # divides evenly over 1, 2, 4, 8 and 16 devices
        config.train.log_every = 20
        config.train.eval_every = 100
        config.train.checkpoint_every = 100
        config.train.eval_splits = ('train', 'validation')  # the best checkpoint is the one that knows the 20 best
        config.train.keep_best = 1
    return config
