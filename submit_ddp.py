"""The run of submit.py on every visible GPU, on several CPU processes, or inside torchrun."""

from geopose.commands import submit_ddp

if __name__ == "__main__":
    submit_ddp()
