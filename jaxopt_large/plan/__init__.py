"""What a step costs."""

from ..hlo import Collective as Collective
from ..hlo import Collectives as Collectives
from ..hlo import collectives as collectives
