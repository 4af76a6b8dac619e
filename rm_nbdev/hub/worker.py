# temporary: until the rename of hub.worker.check_hub is applied (see renames/C.tsv); delete then
from .upload import check_hub
