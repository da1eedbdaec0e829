"""Is a network well initialized, and if not, what is wrong with it?

| question | file |
| --- | --- |
| What does `diagnose` do, in which order? | `diagnose.py` |
| What comes back, as a table, HTML, JSON, figure? | `report.py`, `layer.py`, `plot.py` |
| How large are inputs, outputs and gradients of each layer? | `signals.py` |
| What do inputs, targets and the loss show of themselves? | `batch.py`, `moments.py` |
| Which activations and residual sums lie between the layers? | `events.py` |
| What becomes of gradients over time in recurrent layers? | `recurrent.py` |
| Does dropout keep the mean? | `noise.py` |
| What is the curvature along the gradient? | `curvature.py` |
| Is a learning rate too high? | `rate.py` |
| When is a layer vanishing or exploding? | `rules.py` |
| Which fault explains the others? | `causes.py` |
| How is it put together? | `wiring.py` |
| What would fix it? | `remedies.py` |
| What does the command line take? | `command.py` |
"""

from hessinit_lib.diagnosis.diagnose import diagnose
from hessinit_lib.diagnosis.layer import LayerDiagnosis
from hessinit_lib.diagnosis.report import Diagnosis, Fault

__all__ = ["Diagnosis", "Fault", "LayerDiagnosis", "diagnose"]
