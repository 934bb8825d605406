"""bpkit-rules: other learning rules on the same layers, through `bpkit.convert(model, rule=name)`.

    feedback            a fixed random matrix in place of the weights on the way back
    direct_feedback     the output's error sent to every layer by a fixed random matrix
    sign_symmetry       the signs of the weights in their place
    straight_through    a step's error passed on as it is
    surrogate           a step's error times the slope of a smooth stand-in
    guided              ReLU that hands down positive errors alone

The forward stays the layer's own, bit for bit; `bpkit.revert` gives the true gradient back.
"""

from bpkit_rules.angle import FeedbackAngle, FeedbackAngles
from bpkit_rules.step import Heaviside, Step

__version__ = "0.1.0"

__all__ = ["FeedbackAngle", "FeedbackAngles", "Heaviside", "Step", "__version__"]
