"""Floor 4: how a tensor is kept between uses: an optimizer's state, a master weight."""

from narrowcast.storage.coded import Coded
from narrowcast.storage.expansion import Expanded
from narrowcast.storage.logarithmic import LogTile
from narrowcast.storage.parts import Parts
from narrowcast.storage.spelling import storage
from narrowcast.storage.storage import Storage, Stored

__all__ = ["Coded", "Expanded", "LogTile", "Parts", "Storage", "Stored", "storage"]
