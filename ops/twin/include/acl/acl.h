// Names of the runtime's header that occur in signatures of a sample's host part. The simulator runs no host code.
#pragma once

using aclrtStream = void*;
using aclrtContext = void*;
using aclrtEvent = void*;
using aclError = int;
