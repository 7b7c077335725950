"""Python client of Diptych, typed, synchronous and for asyncio, over REST and gRPC.

The command `diptych` is its command line. Images go in as paths, bytes, arrays, tensors or PIL
images; answers are dataclasses.
"""

from diptych_client.clients.async_client import AsyncClient as AsyncClient
from diptych_client.clients.client import Client as Client
from diptych_client.errors import ConnectionFailed as ConnectionFailed
from diptych_client.errors import DeadlineExceeded as DeadlineExceeded
from diptych_client.errors import DiptychError as DiptychError
from diptych_client.errors import ErrorDetail as ErrorDetail
from diptych_client.errors import ImageExpired as ImageExpired
from diptych_client.errors import ImageTooLarge as ImageTooLarge
from diptych_client.errors import InternalError as InternalError
from diptych_client.errors import InvalidRequest as InvalidRequest
from diptych_client.errors import NotFound as NotFound
from diptych_client.errors import NotReady as NotReady
from diptych_client.errors import Overloaded as Overloaded
from diptych_client.errors import PayloadTooLarge as PayloadTooLarge
from diptych_client.errors import RunnerFailed as RunnerFailed
from diptych_client.errors import Unauthorized as Unauthorized
from diptych_client.errors import UnknownModel as UnknownModel
from diptych_client.errors import UnreadableFile as UnreadableFile
from diptych_client.errors import UnsupportedImage as UnsupportedImage
from diptych_client.errors import UnsupportedTask as UnsupportedTask
from diptych_client.geometry import ImageSize as ImageSize
from diptych_client.geometry import RunLengthMask as RunLengthMask
from diptych_client.requests import AnswerOptions as AnswerOptions
from diptych_client.requests import StoredImage as StoredImage
from diptych_client.requests import TaskParameters as TaskParameters
from diptych_client.results import Analysis as Analysis
from diptych_client.results import Answer as Answer
from diptych_client.results import Comparison as Comparison
from diptych_client.results import Detection as Detection
from diptych_client.results import DetectionsResult as DetectionsResult
from diptych_client.results import Guarantee as Guarantee
from diptych_client.results import Instance as Instance
from diptych_client.results import InstancesResult as InstancesResult
from diptych_client.results import Model as Model
from diptych_client.results import ModelFailure as ModelFailure
from diptych_client.results import StepAnswer as StepAnswer
from diptych_client.results import StepAnswers as StepAnswers
from diptych_client.results import Task as Task
from diptych_client.results import TextRegion as TextRegion
from diptych_client.results import TextRegionsResult as TextRegionsResult
from diptych_client.results import TextResult as TextResult
from diptych_client.results import Tiles as Tiles
from diptych_client.results import Timings as Timings
from diptych_client.results import Usage as Usage
