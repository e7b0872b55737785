"""Colour, light and noise: what changes pixels but moves nothing. In and out: uint8 RGB crops.

Each level adds to the one before. Nothing here may shift what is seen, because the heights stay
where they are: blurs are symmetric and shrinking keeps pixel centres.
"""

import albumentations as A
import cv2


def safe() -> list[A.BasicTransform]:
    """Gamma, tone curve, brightness and contrast."""
    return [
        A.RandomGamma((80, 120), p=0.3),
        A.RandomToneCurve(scale=0.1, p=0.3),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.5),
    ]


def light() -> list[A.BasicTransform]:
    """Adds local contrast, sensor noise and small colour shifts."""
    return [
        *safe(),
        A.CLAHE(clip_limit=(1, 3), p=0.15),
        A.OneOf(
            [
                A.RGBShift(10, 10, 10),
                A.HueSaturationValue(5, 15, 10),
            ],
            p=0.3,
        ),
        A.OneOf(
            [
                A.GaussNoise(std_range=(0.01, 0.04), noise_scale_factor=0.5),
                A.ISONoise(color_shift=(0.01, 0.03), intensity=(0.1, 0.3)),
            ],
            p=0.2,
        ),
    ]


def medium() -> list[A.BasicTransform]:
    """Adds haze and holes of up to a tenth of the side; heights under holes are still asked for."""
    return [
        *light(),
        A.RandomFog(fog_coef_range=(0.1, 0.3), alpha_coef=0.1, p=0.1),
        A.CoarseDropout(
            num_holes_range=(1, 6),
            hole_height_range=(0.02, 0.1),
            hole_width_range=(0.02, 0.1),
            fill=0,
            p=0.2,
        ),
    ]


def hard() -> list[A.BasicTransform]:
    """Adds strong colour changes, blur, JPEG artefacts and lost resolution."""
    return [
        *medium(),
        A.OneOf(
            [
                A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.5, 1.5), (-0.05, 0.05)),
                A.HueSaturationValue(15, 40, 30),
                A.RGBShift(30, 30, 30),
                A.ToGray(),
            ],
            p=0.4,
        ),
        A.OneOf(
            [
                A.GaussianBlur(blur_limit=(3, 5)),
                A.MotionBlur(blur_limit=(3, 7), allow_shifted=False),
            ],
            p=0.2,
        ),
        A.OneOf(
            [
                A.ImageCompression(quality_range=(50, 95)),
                A.Downscale(
                    scale_range=(0.5, 0.9),
                    interpolation_pair={"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR},
                ),
            ],
            p=0.3,
        ),
    ]
