"""Floor 4: layers made of gemms."""

from narrowcast.nn.convert import Conversion, Site, convert_linears
from narrowcast.nn.linear import Linear, Operand, operands
from narrowcast.nn.spec import OPERANDS, LinearSpec

__all__ = ["OPERANDS", "Conversion", "Linear", "LinearSpec", "Operand", "Site", "convert_linears", "operands"]
