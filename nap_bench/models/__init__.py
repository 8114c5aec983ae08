"""Network families. A family is `Family(spec, num_seeds, inputs, outputs)`, built out of `blocks` on the meta device."""

from nap_bench.models.cnn import CNN
from nap_bench.models.mlp import MLP
from nap_bench.models.rainbow_net import RainbowNet
from nap_bench.models.resnet import ResNet
from nap_bench.models.transformer import Transformer
from nap_bench.models.vgg import VGG

FAMILIES = {
    "cnn": CNN,
    "mlp": MLP,
    "rainbow": RainbowNet,
    "resnet": ResNet,
    "transformer": Transformer,
    "vgg": VGG,
}
BRANCHED = ("rainbow", "resnet", "transformer")
"""Families whose layers do not follow each other: they add to a stream, or stand side by side."""
UNIT_SCALED = ("cnn", "mlp", "resnet", "vgg")
"""Families whose layers can have a learned factor for every unit's output (`ModelSpec.unit_scale`)."""
INJECTED = ("cnn", "mlp", "rainbow", "vgg")
"""Families whose head can have frozen heads beside it (`ModelSpec.injections`)."""
CAUSAL = ("transformer",)
"""Families whose examples are tokens that may not see later ones: nothing may be averaged over a batch there."""
