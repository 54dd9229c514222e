"""Floor 6: hold other people's encoders and decoders against the definition here, bit for bit."""

from narrowcast.testing.check import conform
from narrowcast.testing.report import Finding, Report, Tally
from narrowcast.testing.search import Reason
from narrowcast.testing.trials import Difference

__all__ = ["Difference", "Finding", "Reason", "Report", "Tally", "conform"]
