"""The project's vocabulary as enumerations, using DICOM's own codes where they exist."""

from enum import StrEnum

# Long sides in pixels of the pyramid levels below the native size. No level is more than twice as
# fine as the next, so a bilinear read between two of them skips no pixel.
PYRAMID_LONG_SIDES = (4096, 2048, 1024, 512)
# View Position (0018,5101) as the ACR abbreviates the views of CID 4014, and what archives add.
VIEWS = frozenset(
    {"CC", "MLO", "ML", "LM", "LMO", "FB", "SIO", "ISO", "XCCL", "XCCM", "SPECIMEN"}
    | {"XCC", "AT", "CV"}
)


class Status(StrEnum):
    """The outcome for one image found in the folder."""

    OK = "ok"
    EXCLUDED = "excluded"  # read, but by its nature not for training
    FAILED = "failed"  # could not be read


class Reason(StrEnum):
    """Why an image is not ``ok``."""

    NOT_MAMMOGRAPHY = "not_mammography"
    MULTI_FRAME = "multi_frame"
    NO_BREAST = "no_breast_found"
    DUPLICATE = "duplicate_image"
    NOT_IN_TABLE = "not_in_label_table"  # an image file that is not DICOM and that no row names
    NOT_DICOM = "not_dicom"  # the same for predict, which takes no table
    NOT_PREFERRED = "not_preferred"  # the view has an image of the kind that --prefer takes
    FORGOTTEN = "forgotten"  # taken out by `mammo-pd forget`, and its file is still in the folder

    NOT_AN_IMAGE = "not_an_image"
    UNREADABLE = "unreadable_file"
    NO_PIXELS = "no_pixel_data"
    COLOUR = "colour_image"
    DECODE_FAILED = "decode_failed"
    NO_VOI = "voi_missing"  # the policy insists on a LUT or window that the header lacks
    HEADER_CONTRADICTS = "header_contradicts_pixels"
    EMPTY_PIXELS = "constant_pixels"
    WORKER_DIED = "worker_died"
    TOO_SLOW = "took_too_long"

    @property
    def may_pass(self) -> bool:
        """Whether the cause may be outside the file, so that the next run should try again."""
        return self in (Reason.UNREADABLE, Reason.WORKER_DIED, Reason.TOO_SLOW)

    @property
    def is_seen(self) -> bool:
        """Whether the pixels were decoded, and are why the image is not used."""
        return self in (Reason.NO_BREAST, Reason.EMPTY_PIXELS)

    @property
    def excludes(self) -> bool:
        """Whether the image was read and is, by its nature, not for training."""
        return self in (
            Reason.NOT_MAMMOGRAPHY,
            Reason.MULTI_FRAME,
            Reason.NO_BREAST,
            Reason.DUPLICATE,
            Reason.NOT_IN_TABLE,
            Reason.NOT_DICOM,
            Reason.NOT_PREFERRED,
            Reason.FORGOTTEN,
        )


class ImageKind(StrEnum):
    """How a mammogram was made.

    ``ffdm``: full-field digital, one exposure; ``synthetic``: two-dimensional, computed from
    tomosynthesis; ``tomosynthesis``: its slices or projections; ``other``: scanned film, computed
    radiography, secondary captures.
    """

    FFDM = "ffdm"
    SYNTHETIC = "synthetic"
    TOMOSYNTHESIS = "tomosynthesis"
    OTHER = "other"


class Prefer(StrEnum):
    """Which kind of image is used if a view has both.

    ``ffdm``: the full-field digital exposure; ``synthetic``: the image computed from tomosynthesis;
    ``both``: every image, as if nothing was chosen.
    """

    FFDM = "ffdm"
    SYNTHETIC = "synthetic"
    BOTH = "both"


class Laterality(StrEnum):
    """Image Laterality (0020,0062)."""

    LEFT = "L"
    RIGHT = "R"


class VoiPolicy(StrEnum):
    """Which value-of-interest transformation makes the grey scale.

    ``auto``: the VOI LUT Sequence, else the first window with its VOI LUT Function, else the full
    stored range. ``lut`` and ``window`` insist on one; ``raw`` takes the stored range.
    """

    AUTO = "auto"
    LUT = "lut"
    WINDOW = "window"
    RAW = "raw"


class Frames(StrEnum):
    """What is used from a file of several frames, such as tomosynthesis.

    ``exclude``: nothing; ``middle``: the middle frame; ``mip``: the maximum over all frames, each
    in its own grey scale; ``each``: every frame, as an image of its own.
    """

    EXCLUDE = "exclude"
    MIDDLE = "middle"
    MIP = "mip"
    EACH = "each"


class Compression(StrEnum):
    """How a store's pixels are compressed, always without loss."""

    NONE = "none"
    LZ4 = "lz4"


class Level(StrEnum):
    """The unit that a result refers to."""

    IMAGE = "image"
    BREAST = "breast"
    EXAM = "exam"
    PATIENT = "patient"


class Split(StrEnum):
    """Which part of a split an image belongs to."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class ScoredPatches(StrEnum):
    """Which patches of an image are read to score it: all, or only those that hold breast."""

    ALL = "all"
    TISSUE = "tissue"

    def in_words(self, num_tokens: int) -> str:
        """Which of the N patches of an image, for a sentence."""
        if self is ScoredPatches.TISSUE:
            return f"those of the {num_tokens} patches that hold breast"
        return f"all {num_tokens} patches"


class Draw(StrEnum):
    """How the kept positions are drawn.

    ``uniform``: every subset equally likely (the paper's); ``tissue``: patches that hold breast
    first, air only to fill up; ``grid``: evenly spread, at a random offset (the structured sampling
    that the paper compares with).
    """

    UNIFORM = "uniform"
    TISSUE = "tissue"
    GRID = "grid"
