"""`python -m dagflow`."""

import os
import signal

from dagflow.cli import main

if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:  # one process of several: until the run is prepared nothing has
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # to be saved, and imports must not delay it
    main()
