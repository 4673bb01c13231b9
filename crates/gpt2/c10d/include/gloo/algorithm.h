// The wheel has no headers of gloo, and ProcessGroupGloo.hpp names a few of its classes. It holds pointers to them
// only, so that declarations are enough: these stand-ins have no more than what that header reads.
#pragma once
