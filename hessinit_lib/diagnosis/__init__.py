"""Is a network well initialized, and if not, what is wrong with it?

`diagnose.py` is the entry, `report.py` what comes back. One pass through the model
(`signals.py`, with `events.py` for what happens between layers) tells sizes of signals and
gradients; `noise.py` looks at dropout, `curvature.py` at how the loss bends along gradients.
`rules.py` says what is out of bounds in a layer, `causes.py` what is wrong with the network.
`command.py` is for the command line.
"""

from hessinit_lib.diagnosis.diagnose import diagnose
from hessinit_lib.diagnosis.report import Diagnosis, Fault, LayerDiagnosis

__all__ = ["Diagnosis", "Fault", "LayerDiagnosis", "diagnose"]
