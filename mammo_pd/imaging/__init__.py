"""From a file to the grey values of one breast."""

import logging

# pydicom's log messages can quote paths and values; what matters in them is in our own errors.
logging.getLogger("pydicom").propagate = False
