"""Every field once, with its unit and what it does. A recipe starts from here and says only what differs.

The defaults are those of the network `ltbc` (Iizuka et al. 2016), its paper's recipe; see configs/ltbc.py.
"""

from ml_collections import ConfigDict


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
    return config


def _model(name: str) -> ConfigDict:
    model = ConfigDict()
    model.name = name  # a key of jaxcolor.models.MODELS
    model.dtype = 'float32'  # what layers compute in: 'float32' or 'bfloat16'; parameters and losses stay float32
    model.width = 1.0  # multiplies the filters of every layer but the outputs
    return model


def ltbc() -> ConfigDict:
    """Section model of the network `ltbc`."""
    model = _model('ltbc')
    model.batch_norm = True  # after every convolution and dense layer but the outputs, before its ReLU
    model.classes = 205  # of the scene classifier; 0 leaves the classifier out
    model.classifier_width = 256  # filters of its hidden layer
    model.dense_widths = (1024, 512, 256)  # of the global branch
    model.decoder = 'nearest'  # 'nearest' (upsampling and convolutions) or 'deconv' (transposed convolutions)
    model.output_activation = 'sigmoid'  # 'sigmoid', 'tanh' or 'linear'; says how the output stands for a*b*, too
    model.global_size = 224  # pixels, a multiple of 32: the side of the copy that the global branch sees
    model.global_dropout = 0.0  # share of the values dropped in training, behind the first two dense layers
    model.color_classes = 0  # classes of colours that a pixel is sorted into (task `color_classes`); 0 gives a*b* itself
    model.members = 1  # networks like this one, whose answers are averaged: `jaxcolor.exported` makes them of several runs
    model.padding = 'symmetric'  # of convolutions: 'symmetric' as in Torch, 'SAME' as in TensorFlow
    return model


def deepcolor() -> ConfigDict:
    """Section model of the network `deepcolor`."""
    model = _model('deepcolor')
    model.variant = 'base'  # its architecture: 'base', '1', '2' or '3'
    model.output_activation = 'tanh'  # 'sigmoid', 'tanh' or 'linear'; illegible in the report, tanh in Deep Koalarization
    return model


def vgg_fusion() -> ConfigDict:
    """Section model of the network `vgg_fusion`."""
    model = _model('vgg_fusion')
    model.encoder_widths = (64, 128, 128, 256, 256, 512)  # the report's table of them is lost
    model.output_activation = 'tanh'  # 'sigmoid', 'tanh' or 'linear'
    model.use_features = True  # False puts zeros for the vector of VGG16, to see what it is worth
    return model


def cgan() -> ConfigDict:
    """Section model of the network `cgan`: generator and discriminator."""
    model = _model('cgan')
    model.size = 64  # pixels, a multiple of 16: side of the photos it is trained on; data.crop is the same
    model.noise_size = 100  # values of z, uniform in [-1, 1]; from the code of the report's paper
    model.hidden_width = 64  # of the discriminator's first dense layer; the report is silent, its paper's code has 64
    return model


def extractor() -> ConfigDict:
    """Section extractor: the frozen ImageNet network whose 1000 outputs `deepcolor` and `vgg_fusion` take."""
    extractor = ConfigDict()
    extractor.name = ''  # 'vgg16', 'inception_resnet_v2'; '' for networks that take none
    extractor.weights = ''  # a published file; '' looks in the cache, then downloads; 'random' for weights of no meaning
    extractor.cached = False  # take the vectors that `prepare --features` stored, of each photo's whole centre square
    return extractor


def regression() -> ConfigDict:
    """Section task of ab regression: error of a*b* + alpha * cross entropy + kernel_l2 * sum of squared kernels."""
    task = ConfigDict()
    task.name = 'regression'  # a key of jaxcolor.tasks.TASKS
    task.error = 'squared'  # of a* and b*: 'squared', or 'huber' (squared up to huber_delta, linear beyond)
    task.huber_delta = 10.0  # units of a*b*
    task.chroma_weight = 0.0  # a pixel's error weighs 1 + this * its true chroma / 100: colours count for more than grays
    task.chroma_gain = 1.0  # evaluating and colouring multiply a*b* by it: means are grayer than what they are the mean of
    task.mirror = False  # evaluating and colouring average the answers for the photo and for its mirror image
    task.reduction = 'sum'  # of the squared error of a photo: 'sum' (the paper's Frobenius norm) or 'mean'
    task.loss_resolution = 'output'  # where it is taken: at the network's 'output' size, or at its 'input' size
    task.alpha = 1 / 300  # weight of the cross entropy; photos without a label add nothing
    task.kernel_l2 = 0.0  # weight of the sum of squared kernels, a term of the loss
    task.kernel_l2_excluded = ('',)  # layers whose kernels it leaves out, by name
    return task


def color_classes() -> ConfigDict:
    """Section task of sorting pixels into classes of colours: rebalanced cross entropy + that of the photo's class."""
    task = ConfigDict()
    task.name = 'color_classes'  # a key of jaxcolor.tasks.TASKS
    task.rebalance = 0.5  # lambda: a class weighs 1 / ((1 - this) share + this / classes); 1 lets all weigh alike
    task.sigma = 5.0  # units of a*b*: how far a true colour belongs to the classes around it
    task.temperature = 0.38  # T, above 0: 1 gives the mean of the predicted colours, towards 0 the likeliest one
    task.answer_rebalance = 1.0  # lambda of the answer: likelihoods are multiplied by such weights; 1 leaves them alone
    task.chroma_gain = 1.0  # evaluating and colouring multiply a*b* by it: means are grayer than what they are the mean of
    task.mirror = False  # evaluating and colouring average the answers for the photo and for its mirror image
    task.alpha = 0.0  # weight of the cross entropy of the photo's class; photos without a label add nothing
    task.kernel_l2 = 0.0  # weight of the sum of squared kernels, a term of the loss
    task.kernel_l2_excluded = ('',)  # layers whose kernels it leaves out, by name
    return task


def adversarial() -> ConfigDict:
    """Section task of a generator against a discriminator, in YUV."""
    task = ConfigDict()
    task.name = 'adversarial'  # a key of jaxcolor.tasks.TASKS
    task.l1 = 0.0  # weight of the generator's mean absolute error in U and V; in the text of the paper, not in its code
    task.real_label = 1.0  # what the discriminator is to say of true photos; 0.9 is one-sided label smoothing
    return task


def optimizer() -> ConfigDict:
    """Section optimizer; a field that the named optimizer or schedule does not have is ignored."""
    optimizer = ConfigDict()
    optimizer.name = 'adadelta'  # 'adadelta', 'adam', 'rmsprop', 'sgd'; for huge batches 'lars' (sgd's), 'lamb' (adam's)
    optimizer.learning_rate = 1.0  # the peak, where the schedule varies
    optimizer.scaling = 'none'  # of the rate with batch_size / base_batch_size: 'none', 'linear', 'sqrt'; go with a warm-up
    optimizer.base_batch_size = 128  # photos a step that learning_rate is right for
    optimizer.schedule = 'constant'  # 'constant', 'cosine' (to 0 at the last step) or 'step'
    optimizer.warmup_steps = 0  # steps of linear warm-up from 0, ahead of any schedule
    optimizer.decay_every = 10_000  # steps, of schedule 'step'
    optimizer.decay_factor = 0.1  # of schedule 'step'
    optimizer.weight_decay = 0.0  # decoupled (AdamW); kernel L2 in the loss is task.kernel_l2
    optimizer.clip_norm = 0.0  # largest global norm of the gradients; 0 clips none
    optimizer.rho = 0.95  # decay of the squared gradients: adadelta, rmsprop
    optimizer.eps = 1e-6  # adadelta, adam, rmsprop, lars, lamb
    optimizer.beta1 = 0.9  # adam, lamb
    optimizer.beta2 = 0.999  # adam, lamb
    optimizer.momentum = 0.0  # sgd, rmsprop, lars
    optimizer.nesterov = False  # sgd, lars
    return optimizer


def data() -> ConfigDict:
    """Section data."""
    data = ConfigDict()
    data.shards = ''  # folder that `python -m jaxcolor.prepare` wrote; '' takes the bundled photos
    data.crop = 224  # pixels, the side of the square that the network is trained on
    data.flip = True  # left to right, for half of the photos
    data.flip_vertical = False  # upside down, for half of the photos
    data.resized_crop = 0.0  # least part of the area in a crop of random size and aspect, not enlarged; 0 crops at scale
    data.rotate = 0.0  # degrees, the most to either side
    data.shift = 0.0  # the most to either side, as part of the height and width; mirrored at the edges
    data.brightness = 0.0  # linear light is multiplied by a random factor from 1 / (1 + this) to 1 + this
    data.placement = 'host'  # 'device' holds the whole set on every device: batches are then made inside the step
    data.read_threads = 2  # threads of this process that read and augment; each makes whole batches
    data.prefetch = 4  # batches ready ahead of the step
    data.workers = 0  # processes that read, beside the threads; 0 is faster unless decoding is slow
    return data


def train() -> ConfigDict:
    """Section train."""
    train = ConfigDict()
    train.steps = 200_000  # optimizer steps, in all
    train.init_from = ''  # run directory or exported model whose trained network this one begins as; '' begins from the seed
    train.init_redraw = ('',)  # layers, by name, that init_from does not give: they begin from the seed
    train.batch_size = 128  # photos a step: those of a device and a part x devices of all processes x accumulation_steps
    train.accumulation_steps = 1  # parts that a device takes its photos in, one after the other; as good as more devices
    train.mapping = 'shard_map'  # of a device's step over all devices: 'shard_map' or 'pmap', with the same numbers
    train.cross_device_batch_norm = False  # batch norm over all devices' photos (of a part), not each device's by itself
    train.ema = 0.0  # decay of the moving average of the parameters that evaluates and colours; 0 takes them as they are
    train.heartbeat = 30  # seconds without a sign of life after which a process of several is taken for dead
    train.log_every = 50  # steps between lines of metrics.jsonl
    train.eval_every = 5_000  # steps between evaluations, each with example grids and curves
    train.eval_splits = ('validation',)  # splits to evaluate; the first one's loss says which checkpoints are best
    train.checkpoint_every = 5_000  # steps between checkpoints; there is one at every evaluation, too
    train.keep_best = 3  # checkpoints kept for their validation loss, beside the last
    train.grid_photos = 8  # photos in an example grid
    train.tensorboard = False  # whether the metrics go to TensorBoard too (needs the extra [tensorboard])
    return train


def choose(variants: dict, name: str):
    """variants[name], or an error that lists what there is: for recipes that take `--config=configs/NAME.py:VARIANT`."""
    if name not in variants:
        raise ValueError(f'there is no variant {name!r}; there are {", ".join(filter(None, variants))}')
    return variants[name]
