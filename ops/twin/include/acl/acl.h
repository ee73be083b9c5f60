// Names of the runtime's header that stand in signatures of a sample's host part. The twin runs no host code.
#pragma once

using aclrtStream = void*;
using aclrtContext = void*;
using aclrtEvent = void*;
using aclError = int;
