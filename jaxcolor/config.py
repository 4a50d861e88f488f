"""Every config field once, with its unit and what it does; `allowed.py` has the values that are allowed.

A recipe (`configs/NAME.py`, or a file of your own) starts from `get_config()` and says only what differs. The defaults are
those of the network `ltbc` (Iizuka et al. 2016), its paper's recipe; see configs/ltbc.py.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# The model that comes with the package and is used where none is named.
DEFAULT_MODEL = 'ltbc-lite'


def get_config() -> ConfigDict:
    """All fields with their defaults."""
    config = ConfigDict()
    config.name = 'base'  # of the recipe; the run directory is runs/<name> unless --workdir names another
    config.seed = 0  # of the parameters, the order of the photos and their augmentation
    config.model = ltbc()
    config.extractor = extractor()
    config.task = regression()
    config.optimizer = optimizer()
    config.data = data()
    config.train = train()
    config.train.update({'steps': 200_000, 'eval_every': 5_000})
    return config


def _model(name: str) -> ConfigDict:
    model = ConfigDict()
    model.name = name  # a key of jaxcolor.models.MODELS
    model.dtype = 'float32'  # what layers compute in; parameters and losses stay float32
    model.width = 1.0  # multiplies the filters of every layer but the outputs
    return model


def ltbc() -> ConfigDict:
    """Section model of the network `ltbc`."""
    model = _model('ltbc')
    model.batch_norm = True  # after convolutions, before their ReLU; which other layers have it, if this is True:
    model.batch_norm_dense = True  # the dense layers, but the classifier's output
    model.batch_norm_fusion = False  # the fusion's 1x1 convolution
    model.batch_norm_output = False  # the convolution that gives the colors
    model.classes = 205  # of the scene classifier; 0 leaves the classifier out
    model.classifier_width = 256  # filters of its hidden layer
    model.dense_widths = (1024, 512, 256)  # of the global branch
    model.decoder = 'nearest'  # 'nearest': upsampling and convolutions; 'deconv': transposed convolutions
    model.output_activation = 'sigmoid'  # it also decides how the output is scaled (color.UNIT_RANGE)
    model.output_space = 'lab'  # what is predicted: 'lab' a*b*, 'yuv' U and V, 'rgb' R, G and B; the photo's own L* is kept
    model.residual = False  # convolutions whose output has the shape of their input add the input to it, ahead of the ReLU
    model.global_size = 224  # pixels, a multiple of 32: side of the copy that the global branch sees
    model.global_dropout = 0.0  # dropout rate behind the first two dense layers
    model.color_classes = 0  # color classes of a pixel (task `color_classes`); 0 gives a*b* itself
    model.members = 1  # networks of an ensemble, whose predictions are averaged; `jaxcolor export` makes one of several runs
    model.padding = 'symmetric'  # of convolutions: 'symmetric' as in Torch, 'SAME' as in TensorFlow
    return model


def ltbc_lite() -> ConfigDict:
    """Section model of the network `ltbc_lite`."""
    model = _model('ltbc_lite')  # its width does not multiply the encoder's filters
    model.variant = 'lite0'  # of the encoder, a key of models.efficientnet_lite.VARIANTS
    model.vector = 128  # values of the global vector
    model.encoder_norm = 'trained'  # batch norm of the encoder, in training: 'trained' by the batch; 'frozen' statistics
    model.output_activation = 'tanh'  # of a*b*
    model.color_classes = 0  # color classes of a pixel (task `color_classes`); 0 gives a*b* itself
    return model


def deepcolor() -> ConfigDict:
    """Section model of the network `deepcolor`."""
    model = _model('deepcolor')
    model.variant = 'base'  # its architecture, a key of models.encoder_fusion.DEEPCOLOR
    model.use_features = True  # False feeds zeros in place of the extractor's vector, to see what it is worth
    # Tanh as in Deep Koalarization. The report's listings end in 'relu', but not as its summaries have the layers.
    model.output_activation = 'tanh'
    return model


def vgg_fusion() -> ConfigDict:
    """Section model of the network `vgg_fusion`."""
    model = _model('vgg_fusion')
    model.encoder_widths = (64, 128, 128, 256, 256, 512)  # the report's table of them is lost
    model.output_activation = 'tanh'
    model.use_features = True  # False feeds zeros in place of the extractor's vector, to see what it is worth
    return model


def cgan() -> ConfigDict:
    """Section model of the network `cgan`: generator and discriminator."""
    model = _model('cgan')
    model.size = 64  # pixels, a multiple of 16: side of the training photos; data.crop is the same
    model.noise_size = 100  # values of z, uniform in [-1, 1]; from the code of the report's paper
    model.hidden_width = 64  # of the discriminator's first dense layer; the report is silent, its paper's code has 64
    model.output_activation = 'sigmoid'  # of U and V; with 'tanh' they lie in [-1, 1] for the discriminator, too
    model.generator_layers = 7  # 7: an output layer follows the six that the report lists; 6: the sixth is the output layer
    model.leaky_slope = 0.2  # of the discriminator's leaky ReLU, below 0
    model.batch_norm_momentum = 0.9  # decay of the running statistics
    model.batch_norm_eps = 1e-5  # added to the variance
    return model


def ddcolor() -> ConfigDict:
    """Section model of the network `ddcolor`."""
    model = _model('ddcolor')
    model.variant = 'tiny'  # of the encoder, a key of models.ddcolor.VARIANTS
    model.queries = 100  # colors that the pixels are mixed from
    model.layers = 9  # in which the queries look at the photo
    return model


def deoldify() -> ConfigDict:
    """Section model of the network `deoldify`."""
    model = _model('deoldify')
    model.variant = 'artistic'  # a key of models.deoldify.VARIANTS
    model.encoder_norm = 'trained'  # batch norm of the encoder, in training: 'trained' by the batch; 'frozen' statistics
    return model


def eccv16() -> ConfigDict:
    """Section model of the network `eccv16`."""
    model = _model('eccv16')
    model.color_classes = 313  # color classes of a pixel (task `color_classes`); 0: a*b*, the mean of 313 learned colors
    model.encoder_norm = 'trained'  # batch norm of the first seven blocks, as above
    return model


def siggraph17() -> ConfigDict:
    """Section model of the network `siggraph17`."""
    model = _model('siggraph17')
    model.encoder_norm = 'trained'  # batch norm of the first seven blocks, as above
    return model


def iizuka() -> ConfigDict:
    """Section model of the network `iizuka`: `ltbc` as its authors' file has it."""
    model = ltbc()
    del model.members
    model.update({'name': 'iizuka', 'luma_mean': 0.0})  # of the training photos' luma in [0, 1]; it is subtracted
    model.encoder_norm = 'trained'  # batch norm of the low-level and global features, as above
    model.repeat_output = False  # whether the published network itself repeats its output's pixels to the size of the photo
    return model


def extractor() -> ConfigDict:
    """Section extractor: the frozen ImageNet network whose 1000 outputs `deepcolor` and `vgg_fusion` take."""
    extractor = ConfigDict()
    extractor.name = ''  # a key of models.extractors.NETWORKS; '' for networks that take none
    extractor.weights = ''  # a file; '' looks in the cache, then downloads or asks a package; 'random' for untrained weights
    extractor.cached = False  # use the vectors that `prepare --features` stored, of each photo's whole center square
    return extractor


def _ab_task(name: str) -> ConfigDict:
    """What `regression` and `color_classes` share."""
    task = ConfigDict()
    task.name = name  # a key of jaxcolor.tasks.TASKS
    task.chroma_gain = 1.0  # inference: multiplies a*b*, since means are grayer than what they average
    task.mirror = False  # inference: average the predictions for the photo and for its mirror image
    task.alpha = 0.0  # weight of the cross entropy of the photo's class; photos without a label add nothing
    task.kernel_l2 = 0.0  # weight of the sum of squared kernels, a term of the loss
    task.kernel_l2_excluded = ()  # layers whose kernels it leaves out, by name
    return task


def regression() -> ConfigDict:
    """Section task of ab regression: error of a*b* + alpha * cross entropy + kernel_l2 * sum of squared kernels, and
    perhaps an adversarial loss."""
    task = _ab_task('regression')
    task.error = 'squared'  # of a* and b*; 'huber' is squared up to huber_delta, linear beyond; or 'absolute'
    task.huber_delta = 10.0  # units of a*b*; of other output spaces, 1/256 of a channel's range
    task.chroma_weight = 0.0  # a pixel's error is weighted by 1 + this * its true chroma / 100
    task.colorfulness = 0.0  # weight of 1 - the colorfulness of the predicted photo
    task.adversarial = 0.0  # weight of fooling a discriminator that is trained beside the network; 0 trains none
    task.reduction = 'mean'  # of a photo's squared error; 'sum', as the paper's Frobenius norm reads, drowns the class
    task.loss_resolution = 'output'  # where the error is taken: at the size of the network's output or input
    task.alpha = 1 / 300
    return task


def color_classes() -> ConfigDict:
    """Section task of per-pixel color classification: rebalanced cross entropy + that of the photo's class."""
    task = _ab_task('color_classes')
    task.rebalance = 0.5  # lambda: a class weighs 1 / ((1 - this) share + this / classes); 1 weighs all alike
    task.sigma = 5.0  # units of a*b*: width of the soft encoding of a true color
    task.temperature = 0.38  # inference: T; 1 gives the mean of the predicted colors, towards 0 the likeliest one
    task.inference_rebalance = 1.0  # inference: lambda of the weights that multiply the likelihoods; 1 leaves them alone
    return task


def adversarial() -> ConfigDict:
    """Section task of a generator against a discriminator, in YUV."""
    task = ConfigDict()
    task.name = 'adversarial'  # a key of jaxcolor.tasks.TASKS
    task.l1 = 0.0  # weight of the generator's mean absolute error in U and V; in the text of the paper, not in its code
    task.real_label = 1.0  # the discriminator's target for true photos; 0.9 is one-sided label smoothing
    return task


def optimizer() -> ConfigDict:
    """Section optimizer; None stands for the optimizer's own value (allowed.OPTIMIZER_DEFAULTS), or that it has none."""
    optimizer = ConfigDict()
    optimizer.name = 'adadelta'  # a key of allowed.OPTIMIZER_DEFAULTS; for huge batches 'lars' (sgd's), 'lamb' (adam's)
    optimizer.learning_rate = placeholder(float)  # the peak, where the schedule varies
    optimizer.scaling = 'none'  # of the rate with batch_size / base_batch_size, a key of SCALINGS; use it with a warm-up
    optimizer.encoder_rate = 1.0  # multiplies the learning rate of the network's pretrained encoder; 0 keeps it as it is
    optimizer.base_batch_size = 128  # photos a step that learning_rate is right for
    optimizer.schedule = 'constant'  # a key of SCHEDULES
    optimizer.warmup_steps = 0  # steps of linear warm-up from 0, ahead of any schedule
    optimizer.warmup_epochs = 0.0  # the same in epochs; the longer of the two counts
    optimizer.decay_every = 10_000  # steps, of schedule 'step'
    optimizer.decay_factor = 0.1  # of schedule 'step'
    optimizer.weight_decay = 0.0  # decoupled (AdamW); kernel L2 in the loss is task.kernel_l2
    optimizer.clip_norm = 0.0  # largest global norm of the gradients; 0 does not clip
    optimizer.rho = placeholder(float)  # decay of the squared gradients
    optimizer.eps = placeholder(float)
    optimizer.beta1 = placeholder(float)
    optimizer.beta2 = placeholder(float)
    optimizer.momentum = placeholder(float)
    optimizer.nesterov = placeholder(bool)
    return optimizer


def data() -> ConfigDict:
    """Section data."""
    data = ConfigDict()
    data.shards = ''  # folder that `jaxcolor prepare` wrote; '' takes the bundled photos
    data.crop = 224  # pixels, the side of the square that the network is trained on
    data.flip = True  # left to right, for half of the photos
    data.flip_vertical = False  # upside down, for half of the photos
    data.resized_crop = 0.0  # least part of the area in a crop of random size and aspect, not enlarged; 0 crops at scale
    data.rotate = 0.0  # degrees, at most, to either side
    data.shift = 0.0  # part of the height and width, at most, to either side; mirrored at the edges
    data.brightness = 0.0  # linear light is multiplied by a random factor from 1 / (1 + this) to 1 + this
    data.degraded = 0.5  # probability of each of the following, which change the L* that the network sees in training alone
    data.blur = 0.0  # pixels, standard deviation, at most
    data.exposure = 0.0  # stops of light too much or too little, at most
    data.vignette = 0.0  # part of the light that is lost in the corners, at most
    data.gamma = 0.0  # L*/100 is raised to a power from 1 / (1 + this) to 1 + this
    data.grain = 0.0  # units of L*, standard deviation in mid-gray, at most; grains of a pixel or two
    data.fading = 0.0  # part of the contrast that is lost, at most
    data.texture = 0.0  # units of L*, standard deviation, at most: fibers and stains of the paper
    data.scratches = 0  # at most, and as many specks of dust
    data.jpeg = 0.0  # 100 - the worst quality of a JPEG
    data.placement = 'auto'  # 'device' holds the whole set on every device and makes the batches inside the step; 'host'
    # streams it; 'auto' takes the device where that is a GPU or TPU with room for the set
    data.read_threads = 2  # threads of this process that read and augment; each makes whole batches
    data.prefetch = 4  # batches ready ahead of the step
    data.workers = 0  # reading processes, beside the threads; 0 is faster unless decoding is slow
    return data


def train() -> ConfigDict:
    """Section train."""
    train = ConfigDict()
    train.steps = placeholder(int)  # optimizer steps; with `epochs` too, training ends at whichever comes first
    train.epochs = placeholder(float)  # epochs: once through the training photos, or train.epoch_steps
    train.epoch_steps = placeholder(int)  # steps that a report calls an epoch; None: what shows each photo once
    train.init_from = ''  # trained network (run directory or exported model) to start from; '' starts from the seed
    train.encoder_weights = 'random'  # of `ltbc_lite`'s encoder, without init_from: as extractor.weights
    train.init_redraw = ()  # layers, by name, that start from the seed all the same
    train.batch_size = 128  # photos a step, over all devices of all processes and all accumulation steps
    train.accumulation_steps = 1  # sequential parts of a device's photos; the same numbers as with more devices
    train.steps_per_call = 1  # optimizer steps of one compiled call, for small networks that a GPU ends before the next is
    # dispatched; logging, evaluations and checkpoints come at the ends of calls, the first at or after their step
    train.devices = 0  # of all processes, which use equally many each; 0: as many as divide the batch evenly
    train.mapping = 'shard_map'  # how a device's step is mapped over all devices; the numbers are the same
    train.deterministic = False  # on GPUs: the same bits in every run, so that resuming is exact; slower. CPUs always are so
    train.cross_device_batch_norm = False  # batch statistics over all devices' photos, not each device's own
    train.ema = 0.0  # decay of the moving average of the parameters used for inference; 0 uses the parameters themselves
    train.heartbeat = 30  # seconds without a sign of life after which a process of several counts as dead
    train.log_every = 50  # steps between lines of metrics.jsonl
    train.eval_every = placeholder(int)  # steps between evaluations, each with example grids and curves
    train.eval_every_epochs = placeholder(float)  # the same in epochs; both may be set
    train.eval_splits = ('validation',)  # splits to evaluate; the first one's loss says which checkpoints are best
    train.checkpoint_every = 5_000  # steps between checkpoints; every evaluation saves one, too
    train.keep_best = 3  # checkpoints kept for their validation loss, beside the last two
    train.grid_photos = 8  # photos in an example grid
    train.tensorboard = False  # whether the metrics go to TensorBoard too (needs the extra [tensorboard])
    return train


TASK_SECTIONS = {section.__name__: section for section in (regression, color_classes, adversarial)}


def choose(variants: Mapping[str, Any], name: str) -> Any:
    """variants[name], or an error that lists what there is: for recipes that take `--config=NAME:VARIANT`."""
    if name not in variants:
        raise ValueError(f'there is no variant {name!r}; there are {", ".join(filter(None, variants))}')
    return variants[name]
