"""From a file to the grey values of one breast."""
