"""Write the MNI152 template that nilearn carries as a stripped 1 mm T1w scan, for `make demo`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from cfgen.data.volume import Volume, write_new
from cfgen.space.template import mni152

if __name__ == "__main__":
    data, grid = mni152("t1", 1)
    write_new(Volume(np.rint(data * 1000), grid.affine), Path(sys.argv[1]), np.int16)
    print(sys.argv[1])
