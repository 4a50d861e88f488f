"""DeepColor (after Deep Koalarization; Baldassarre, Morin, Rodes-Guirao 2017): its four architectures.

python -m jaxcolor.main --config=configs/deepcolor.py:base --config.data.shards=SHARDS
python -m jaxcolor.main --config=configs/deepcolor.py:1    (and :2, :3)

224-pixel photos (25,000 of the Kaggle set "image colorization", split 60/20/20), kernel L2 0.01 on every
convolution but the encoder's last, Adam at 1e-4, batch 5. The report's best test "accuracy" is 56.88 % (what that
measures: larger_channel_agreement in jaxcolor/evaluation/metrics.py); a learning rate of 0.1 diverged and batch 50
did not learn. The output's activation is illegible: tanh, as in Deep Koalarization, is the choice. The report says
nothing of how long it trained: 30 epochs of 3,000 steps are the choice. Inception-ResNet-v2's weights are looked up or
downloaded: --config.extractor.weights=FILE names a published file.
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
    config.task.update({'reduction': 'mean', 'loss_resolution': 'input', 'alpha': 0.0})
    config.task.update({'kernel_l2': 0.01, 'kernel_l2_excluded': (last,)})
    config.optimizer.update({'name': 'adam', 'learning_rate': 1e-4, 'eps': 1e-8})
    config.data.flip = False  # neither report mentions augmentation
    config.train.update({'batch_size': 5, 'steps': 90_000, 'eval_every': 3_000, 'checkpoint_every': 3_000})
    if variant == 'koalarization':
        # 90 % of about 60,000 photos of ImageNet; 100 epochs, of which the paper says nothing, are its code's.
        config.task.update({'kernel_l2': 0.0, 'kernel_l2_excluded': ()})
        config.optimizer.learning_rate = 1e-3
        config.train.update({'batch_size': 100, 'steps': 100 * 540, 'eval_every': 540, 'checkpoint_every': 540})
    return config
