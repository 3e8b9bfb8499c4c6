"""``python -m mammo_pd COMMAND``, as torchrun starts it; the same as ``mammo-pd COMMAND``."""

import sys

from mammo_pd.start import main

if __name__ == "__main__":
    sys.exit(main())
