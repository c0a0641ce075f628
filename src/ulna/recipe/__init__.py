"""What people write and what planning fixes, as data: recipes and plans.

A recipe is written as YAML, changed from the command line by paths (`optimizer.lr=3e-4`), and stored with every run. The
JSON schema of `Recipe` documents every field.
"""

from ulna.recipe.architecture import MOST_CHANNELS, Architecture, Slot
from ulna.recipe.changing import merged, set_value, stated
from ulna.recipe.choices import SPARSE_POINTS, Augmentation, Inference, Optimizer, Planning, Points, Recipe, Training
from ulna.recipe.fingerprint import Extent, Fingerprint, Foreground, Spread
from ulna.recipe.foreign import Foreign, is_foreign, read_source
from ulna.recipe.former import renamed_path
from ulna.recipe.instances import Instances, check_one_structure
from ulna.recipe.labels import Labels
from ulna.recipe.model import Frozen, from_yaml, parse, to_yaml
from ulna.recipe.plan import PLAN_FORMAT, Normalization, Plan, Split, Whitening
from ulna.recipe.protocol import Protocol, Requires
from ulna.recipe.shares import are_counts, read_shares
from ulna.recipe.slices import Slices, count_drawn

__all__ = [
    "MOST_CHANNELS",
    "PLAN_FORMAT",
    "SPARSE_POINTS",
    "Architecture",
    "Augmentation",
    "Extent",
    "Fingerprint",
    "Foreground",
    "Foreign",
    "Frozen",
    "Inference",
    "Instances",
    "Labels",
    "Normalization",
    "Optimizer",
    "Plan",
    "Planning",
    "Points",
    "Protocol",
    "Recipe",
    "Requires",
    "Slices",
    "Slot",
    "Split",
    "Spread",
    "Training",
    "Whitening",
    "are_counts",
    "check_one_structure",
    "count_drawn",
    "from_yaml",
    "is_foreign",
    "merged",
    "parse",
    "read_shares",
    "read_source",
    "renamed_path",
    "set_value",
    "stated",
    "to_yaml",
]
