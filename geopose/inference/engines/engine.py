"""What everything that runs a network has in common."""

from abc import abstractmethod

from torch import Tensor, nn


class Engine(nn.Module):
    """A network ready for many images; in whatever numbers it computes, float32 goes in and out.

    Attributes:
        uses_torch_memory: whether torch's counters see what it takes on a GPU.
    """

    uses_torch_memory = True

    def computes_in(self, precision: str) -> None:
        """Chooses the numbers of what an engine's file leaves open, before the first image.

        Args:
            precision: as resolved for the device.
        """

    @abstractmethod
    def forward(self, image: Tensor, gsd_m: Tensor) -> dict[str, Tensor]:
        """Predicts the pose of every image.

        Args:
            image: N x 3 x H x W, normalised, in the network's channel order; any H and W.
            gsd_m: N x 1, metres per pixel.

        Returns:
            The outputs of `GeoposeUNetModel`, float32.

        Raises:
            RunError: the engine fails, such as for lack of memory.
        """
