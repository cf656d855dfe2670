"""What weather, disturbances and faults do to a lidar scan: the eight corruptions of Robo3D by generators of our own.

`corrupt` changes a scan, `CorruptedScene` a scene. The numbers that come out are not those of the published corrupted
sets: the families are the same, the generators are not (Robo3D's are non-commercial and were not read).
"""

from splatlearn.data.corruptions.scan import SEVERITIES, Severity
from splatlearn.data.corruptions.scene import CORRUPTIONS, CorruptedScene, corrupt

__all__ = ["CORRUPTIONS", "SEVERITIES", "CorruptedScene", "Severity", "corrupt"]
