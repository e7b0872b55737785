"""python -m geopose.data.sample_city: the command's older name, see geopose/sample_city."""

import runpy

if __name__ == "__main__":
    runpy.run_module("geopose.sample_city", run_name="__main__", alter_sys=True)
