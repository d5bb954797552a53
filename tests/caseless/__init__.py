"""A volume in memory that folds names as APFS does, and all kinds of volumes by name."""

from tests.caseless.kinds import EVERY as EVERY
from tests.caseless.kinds import FOLDING as FOLDING
from tests.caseless.kinds import Volumes as Volumes
from tests.caseless.kinds import open_kind as open_kind
from tests.caseless.memory import caseless_volume as caseless_volume
