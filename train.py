"""Trains a model.

python train.py                           # the default on $DRIVENDATA_OVERHEAD_GEOPOSE
python train.py dataset.data_dir=DIR model=b7_unet train=light_768 batch_size=4
torchrun --nproc_per_node=2 train.py model=b6_rdtsc_unet    # several processes
python train.py --help                    # every group and its options
"""

from geopose.commands import train

if __name__ == "__main__":
    train()
