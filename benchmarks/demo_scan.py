"""Write the MNI152 template that nilearn carries as a stripped 1 mm T1w scan, for `make demo`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from nilearn import datasets

from cfgen.data.volume import Volume, write_new

if __name__ == "__main__":
    image = datasets.load_mni152_template(resolution=1)
    data = np.clip(np.asarray(image.dataobj, np.float32), 0, None)
    write_new(Volume(np.rint(data * 1000), np.asarray(image.affine)), Path(sys.argv[1]), np.int16)
    print(sys.argv[1])
