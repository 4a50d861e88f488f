"""DeepColor, its four architectures; and Deep Koalarization, which it follows (Baldassarre, Morin, Rodes-Guirao 2017).

python -m jaxcolor.main --config=configs/deepcolor.py:base --config.data.shards=SHARDS    (and :1, :2, :3, :koalarization)

224-pixel photos (25,000 of the Kaggle set "Image Colorization", split 60/20/20), kernel L2 0.01 on every convolution but
the encoder's last (as printed for base and 1; a choice for 2 and 3, whose listings cannot be read, or contradict it), Adam,
mean squared error, 2,500 epochs (section 4.2). Batch 5 and a learning rate of 1e-4 are the setting of its best test
"accuracy", 0.568752 (figure 20; what it measures: larger_channel_agreement in jaxcolor/tasks/losses.py); all its settings:
configs/sweeps/deepcolor.txt. The listings end in a ReLU, with 8 filters, where the summaries have 2; tanh, as in Deep
Koalarization, is the choice here, and --config.model.output_activation=relu another. Inception-ResNet-v2's weights are
looked up or downloaded: --config.extractor.weights=FILE names a published file.
"""

from jaxcolor import config as base

# Whose kernel the kernel L2 leaves out. Deep Koalarization has no such term.
LAST_OF_ENCODER = {'base': 'encoder_7', '1': 'encoder_6', '2': 'encoder_4', '3': 'encoder_4', 'koalarization': ''}


def get_config(variant: str = 'base'):
    """variant: 'base', '1', '2' or '3'; 'koalarization' is Deep Koalarization itself."""
    last = base.choose(LAST_OF_ENCODER, variant)
    config = base.get_config()
    config.name = f'deepcolor-{variant}'
    config.model = base.deepcolor()
    config.model.variant = variant
    config.extractor.name = 'inception_resnet_v2'
    config.task.update({'loss_resolution': 'input', 'alpha': 0.0})
    config.task.update({'kernel_l2': 0.01, 'kernel_l2_excluded': (last,)})
    config.optimizer.update({'name': 'adam', 'learning_rate': 1e-4, 'base_batch_size': 5})
    config.data.flip = False  # neither report mentions augmentation
    config.train.update({'batch_size': 5, 'steps': None, 'epochs': 2_500, 'eval_every': None, 'eval_every_epochs': 10})
    if variant == 'koalarization':
        # 90 % of about 60,000 photos of ImageNet; 100 epochs, of which the paper says nothing, are its code's.
        config.task.update({'kernel_l2': 0.0, 'kernel_l2_excluded': ()})
        config.optimizer.update({'learning_rate': 1e-3, 'base_batch_size': 100})
        config.train.update({'batch_size': 100, 'epochs': 100, 'eval_every_epochs': 1})
    return config
