@0xd3f1a5c8e7b90214;
# A schema with every kind of field, for the tests of JSON.

enum Colour {
  red @0;
  darkGreen @1;
  blue @2;
}

struct Every {
  void @0 :Void;
  bool @1 :Bool;
  int8 @2 :Int8;
  int16 @3 :Int16;
  int32 @4 :Int32;
  int64 @5 :Int64;
  uInt8 @6 :UInt8;
  uInt16 @7 :UInt16;
  uInt32 @8 :UInt32;
  uInt64 @9 :UInt64;
  float32 @10 :Float32;
  float64 @11 :Float64;
  text @12 :Text;
  data @13 :Data;
  colour @14 :Colour;
  inner @15 :Inner;
  every @16 :Every;

  voids @17 :List(Void);
  bools @18 :List(Bool);
  int8s @19 :List(Int8);
  int16s @20 :List(Int16);
  int32s @21 :List(Int32);
  int64s @22 :List(Int64);
  uInt8s @23 :List(UInt8);
  uInt16s @24 :List(UInt16);
  uInt32s @25 :List(UInt32);
  uInt64s @26 :List(UInt64);
  float32s @27 :List(Float32);
  float64s @28 :List(Float64);
  texts @29 :List(Text);
  datas @30 :List(Data);
  colours @31 :List(Colour);
  inners @32 :List(Inner);
  grid @33 :List(List(UInt16));
  cube @34 :List(List(List(Inner)));

  group :group {
    # Fields of the struct itself.
    left @35 :Int32;
    right @36 :Text;
    deeper :group {
      flag @37 :Bool = true;
    }
  }

  shape :union {
    none @38 :Void;
    circle @39 :Float64;
    name @40 :Text;
    square :group {
      side @41 :UInt32 = 7;
      label @42 :Text;
    }
    inner @43 :Inner;
  }

  any @44 :AnyPointer;
  cap @45 :Capability;
  caps @46 :List(Maker);
  pair @47 :Pair(Text, Inner);
  pairs @48 :List(Pair(Inner, List(UInt8)));
}

struct Inner {
  # Small, and with defaults.

  number @0 :Int16 = -3;
  # A number.

  flag @1 :Bool = true;
  text @2 :Text = "as ever";
  data @3 :Data = 0x"c0ffee";
  colour @4 :Colour = blue;
  float @5 :Float64 = 0.5;
  list @6 :List(UInt32) = [1, 2, 3];
  point @7 :Point = (x = 1, y = 2);
  short @8 :Float32 = inf;
  long @9 :UInt64 = 18446744073709551615;
}

struct Point {
  x @0 :Int64;
  y @1 :Int64;
}

struct Pair(A, B) {
  first @0 :A;
  second @1 :B;
  turned @2 :Pair(B, A);
}

struct Choice {
  # A union without a name.
  before @0 :UInt8;
  union {
    number @1 :UInt64;
    word @2 :Text;
    point @3 :Point;
  }
  after @4 :Text;
}

struct Colours {
  # The fields that another version of `Every` knows.
  colour @0 :UInt16;
}

struct Painted {
  colour @0 :Colour;
}

interface Maker extends(Box(Text)) {
  # Makes things.

  make @0 (every :Every, count :UInt32 = 3) -> (every :Every);
  # Makes one.

  choose @1 Choice -> Choice;

  flow @2 (data :Data) -> stream;
  # Flows.

  any @3 [T] (value :T) -> (value :T);

  boxed @4 (box :Box(Inner)) -> (made :Maker, all :List(Maker));
}

interface Box(T) {
  put @0 (value :T) -> ();
  take @1 () -> (value :T, pair :Pair(T, T));
}
