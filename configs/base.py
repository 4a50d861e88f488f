"""Every field once, with its unit and what it does. A recipe starts from here and says only what differs.

The defaults are those of the network `ltbc` (Iizuka et al. 2016), its paper's recipe; see configs/ltbc.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All fields with their defaults."""
    config = ConfigDict()
    config.name = 'base'  # of the recipe; the run directory is runs/<name> unless --workdir names another
    config.seed = 0  # of the parameters, the order of the photos and their augmentation
    config.model = model = ConfigDict()
    model.name = 'ltbc'  # a key of jaxcolor.models.MODELS
    model.dtype = 'float32'  # what layers compute in: 'float32' or 'bfloat16'; parameters and losses stay float32
    model.update(ltbc())
    config.task = regression()
    config.optimizer = optimizer()
    config.data = data()
    config.train = train()
    return config


def ltbc() -> dict:
    """Section model of the network `ltbc`."""
    model = ConfigDict()
    model.width = 1.0  # multiplies the filters of every layer but the outputs
    model.batch_norm = True  # after every convolution and dense layer but the outputs, before its ReLU
    model.classes = 205  # of the scene classifier; 0 leaves the classifier out
    model.classifier_width = 256  # filters of its hidden layer
    model.output_activation = 'sigmoid'  # 'sigmoid', 'tanh' or 'linear'; says how the output stands for a*b*, too
    model.global_size = 224  # pixels, a multiple of 32: the side of the copy that the global branch sees
    model.padding = 'symmetric'  # of convolutions: 'symmetric' as in Torch, 'SAME' as in TensorFlow
    return model


def regression() -> ConfigDict:
    """Section task of ab regression: squared error + alpha * cross entropy + kernel_l2 * sum of squared kernels."""
    task = ConfigDict()
    task.name = 'regression'  # a key of jaxcolor.tasks.TASKS
    task.reduction = 'sum'  # of the squared error of a photo: 'sum' (the paper's Frobenius norm) or 'mean'
    task.loss_resolution = 'output'  # where it is taken: at the network's 'output' size, or at its 'input' size
    task.alpha = 1 / 300  # weight of the cross entropy; photos without a label add nothing
    task.kernel_l2 = 0.0  # weight of the sum of squared kernels, a term of the loss
    task.kernel_l2_excluded = ('',)  # layers whose kernels it leaves out
    return task


def optimizer() -> ConfigDict:
    """Section optimizer; a field that the named optimizer or schedule does not have is ignored."""
    optimizer = ConfigDict()
    optimizer.name = 'adadelta'  # 'adadelta', 'adam', 'rmsprop' or 'sgd'
    optimizer.learning_rate = 1.0  # the peak, where the schedule varies
    optimizer.schedule = 'constant'  # 'constant', 'cosine' (to 0 at the last step) or 'step'
    optimizer.warmup_steps = 0  # steps of linear warm-up from 0, ahead of any schedule
    optimizer.decay_every = 10_000  # steps, of schedule 'step'
    optimizer.decay_factor = 0.1  # of schedule 'step'
    optimizer.weight_decay = 0.0  # decoupled (AdamW); kernel L2 in the loss is task.kernel_l2
    optimizer.clip_norm = 0.0  # largest global norm of the gradients; 0 clips none
    optimizer.rho = 0.95  # decay of the squared gradients: adadelta, rmsprop
    optimizer.eps = 1e-6  # adadelta, adam, rmsprop
    optimizer.beta1 = 0.9  # adam
    optimizer.beta2 = 0.999  # adam
    optimizer.momentum = 0.0  # sgd, rmsprop
    optimizer.nesterov = False  # sgd
    return optimizer


def data() -> ConfigDict:
    """Section data."""
    data = ConfigDict()
    data.shards = ''  # folder that `python -m jaxcolor.prepare` wrote; '' takes the bundled photos
    data.crop = 224  # pixels, the side of the square that the network is trained on
    data.flip = True  # left to right, for half of the photos
    data.read_threads = 2  # threads of this process that read and crop; each makes whole batches
    data.prefetch = 4  # batches ready ahead of the step
    data.workers = 0  # processes that read, beside the threads; 0 is faster unless decoding is slow
    return data


def train() -> ConfigDict:
    """Section train."""
    train = ConfigDict()
    train.steps = 200_000  # optimizer steps, in all
    train.batch_size = 128  # photos a step, over all devices of all processes
    train.mapping = 'shard_map'  # of a device's step over all devices: 'shard_map' or 'pmap', with the same numbers
    train.cross_device_batch_norm = False  # batch norm over the batch of all devices, not of each by itself
    train.log_every = 50  # steps between lines of metrics.jsonl
    train.eval_every = 5_000  # steps between evaluations, each with example grids and curves
    train.eval_splits = ('validation',)  # splits to evaluate; the first one's loss says which checkpoints are best
    train.checkpoint_every = 5_000  # steps between checkpoints; there is one at every evaluation, too
    train.keep_best = 3  # checkpoints kept for their validation loss, beside the last
    train.grid_photos = 8  # photos in an example grid
    train.tensorboard = False  # whether the metrics go to TensorBoard too (needs the extra [tensorboard])
    return train
