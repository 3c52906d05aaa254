"""Loading models and processors, attaching and merging adapters.

Importing this package makes transformers' Auto classes know the families that have no class there: InternVL2 and
Phi-3-Vision. LLaVA-OneVision gets batches of videos of different lengths.
"""

import vlmexp.models.internvl2
import vlmexp.models.llava_onevision
import vlmexp.models.phi3_vision  # noqa: F401
