"""One whole run as a Ray job, from the project's directory:

``RAY_AUTH_MODE=token ray job submit --working-dir . -- python jobs/distil.py conf/demo.yaml run.dir=/shared/runs/demo``

``masters-ray submit conf/demo.yaml`` does the same, leaves out of the upload what the job does not need, follows the
log and returns the job's exit code.
"""

import sys

from masters_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
