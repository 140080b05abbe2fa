# ruff: noqa: E501 - a table of texts, one row a line, is read best unwrapped
"""Small talk, and short definitions of terms of machine learning and computing: recall, not skill."""

from __future__ import annotations

from random import Random

from vorta_bench.tasks.case import Draft

DEFINITIONS: dict[str, str] = {
    "machine learning": "Machine learning is a way to build programs from examples instead of rules. A model has parameters, and training changes them step by step until its predictions fit the data. A trained model can then answer questions about data that it has never seen.",
    "deep learning": "Deep learning is machine learning with neural networks of many layers. Each layer turns its input into a slightly more useful form, so that the network learns its own features from raw data such as text, images or sound.",
    "artificial intelligence": "Artificial intelligence is the study of programs that do things for which people need intelligence, such as understanding language, planning or recognising images. Today most of it is built with machine learning.",
    "a neural network": "A neural network is a function made of layers of simple units. Each unit adds up its inputs with weights and applies a nonlinear function. Training adjusts the weights so that the output of the network comes close to the wanted one.",
    "a language model": "A language model predicts the next token of a text from the tokens before it. Trained on enough text, it can continue sentences, answer questions and write code, one token at a time.",
    "a transformer": "A transformer is a neural network built from attention and feed-forward layers. Attention lets each token look at all tokens before it, and the feed-forward layer works on each token alone. Most language models today are transformers.",
    "attention": "Attention is the part of a transformer in which each token collects information from other tokens. It compares a query with the keys of the others and adds up their values, weighted by how well query and key match.",
    "a token": "A token is the unit of text that a language model reads and writes. It can be a word, a part of a word, a digit or a sign. A tokenizer turns text into tokens and back.",
    "a tokenizer": "A tokenizer turns text into a list of numbers, the token ids, and back. Common tokenizers learn frequent pieces of text, so that frequent words become one token and rare words several.",
    "quantisation": "Quantisation stores the weights of a model with fewer bits, for example four or eight instead of thirty-two. The model becomes smaller and faster, and with good scales it loses little accuracy.",
    "inference": "Inference means to use a trained model to answer requests. For a language model it has two phases: prefill reads the prompt, and decode writes the answer one token at a time.",
    "training": "Training means to adjust the parameters of a model so that its loss on examples becomes small. An optimizer computes the gradient of the loss and takes a small step in the opposite direction, many thousand times.",
    "overfitting": "Overfitting means that a model learns its training examples by heart instead of the rule behind them. It shows when the error on new data is much larger than the error on the training data.",
    "gradient descent": "Gradient descent is a method to make a function small. It computes the gradient, which points uphill, and takes a small step in the opposite direction, again and again until the value hardly changes.",
    "backpropagation": "Backpropagation computes the gradient of the loss for every weight of a network. It applies the chain rule from the output back to the input, so that all gradients cost about as much as one forward pass.",
    "a loss function": "A loss function measures how wrong a model is on an example. Training makes the average loss small. Language models use the cross entropy between the predicted and the true next token.",
    "a GPU": "A GPU is a processor with thousands of small cores that work on many numbers at once. It was made for graphics, and it is good at the matrix products that neural networks are made of.",
    "a CPU": "A CPU is the general processor of a computer. It has a few fast cores that can run any program. Small and quantised language models run well on a CPU.",
    "gRPC": "gRPC is a framework for remote procedure calls. Services and messages are described in proto files, code is generated for many languages, and calls travel over HTTP/2, with streaming in both directions.",
    "REST": "REST is a style of web interfaces in which resources have addresses and are read and changed with HTTP methods such as GET and POST. Data is usually sent as JSON.",
    "an API": "An API is the interface through which one program uses another. It says which calls exist, what they take and what they return, so that both sides can be changed without breaking each other.",
    "protobuf": "Protobuf is a compact binary format for structured data. Messages are described in proto files with numbered fields, and a compiler generates code that reads and writes them in many languages.",
    "JSON": "JSON is a text format for structured data. It has objects, lists, strings, numbers, true, false and null. It is easy to read for people and programs, and most web interfaces use it.",
    "HTTP": "HTTP is the protocol of the web. A client sends a request with a method, a path, headers and maybe a body, and the server sends a response with a status code, headers and a body.",
    "an embedding": "An embedding is a list of numbers that stands for a text or an image. Things with similar meaning have embeddings that lie close together, so that a search can compare meanings instead of words.",
    "a vector database": "A vector database stores embeddings and finds those nearest to a query. An index such as HNSW makes the search fast even with millions of vectors.",
    "retrieval augmented generation": "Retrieval augmented generation first searches documents for passages that fit a question, and then lets a language model answer from these passages. The answer can then name its sources.",
    "a prompt": "A prompt is the text that is given to a language model as its input. The model continues it. A good prompt says clearly what is wanted and gives the context that is needed.",
    "temperature": "Temperature is a sampling setting. The scores of the tokens are divided by it before a token is drawn. A low temperature makes the output predictable, a high one makes it varied, and zero always takes the best token.",
    "top-p sampling": "Top-p sampling draws the next token from the smallest set of tokens whose probabilities add up to p. Unlikely tokens are left out, and the size of the set follows how certain the model is.",
    "a KV cache": "A KV cache keeps the keys and values of attention for the tokens that were already read. With it, each new token needs only its own computation, so that decoding does not repeat the work of the prompt.",
    "batching": "Batching means to compute several requests in one step. The weights are read once for all of them, so that the throughput grows while each request becomes only a little slower.",
    "continuous batching": "Continuous batching lets requests join and leave the running batch at every step. A short request does not wait for a long one, and the processor is always full.",
    "latency": "Latency is the time between a request and its answer. For language models one measures the time to the first token and the time between two tokens.",
    "throughput": "Throughput is the amount of work done in a time, for example the tokens per second of a server over all requests. It grows with the size of the batch.",
    "streaming": "Streaming means to send an answer piece by piece while it is made. The reader sees the first words at once instead of waiting for the whole text.",
    "ONNX": "ONNX is an open format for machine learning models. A model is a graph of operators with its weights. It can be made with one framework and run with another, for example with ONNX Runtime.",
    "a checkpoint": "A checkpoint is a file with the weights of a model at some point of its training. With it, training can go on later, or the model can be used for inference.",
    "fine-tuning": "Fine-tuning means to train a model further on a smaller set of examples for a special task. The model keeps what it learned before and becomes better at the task.",
    "a parameter": "A parameter is a number in a model that training can change, such as a weight of a neural network. Large models have billions of parameters, small ones a few million.",
    "a data set": "A data set is a collection of examples for training or testing. It is usually split in parts: one for training, one for choosing settings and one for the final test.",
    "supervised learning": "Supervised learning means to learn from examples with known answers. The model sees an input and the right output, and training makes its own output similar.",
    "unsupervised learning": "Unsupervised learning means to find structure in data without given answers, for example groups of similar items or a compact description of the data.",
    "reinforcement learning": "Reinforcement learning means to learn by trial and error. An agent acts, receives rewards, and changes its behaviour so that it collects more reward in the long run.",
    "classification": "Classification means to put an input into one of several classes, for example a message into spam or not spam. The model gives a probability for each class.",
    "regression": "Regression means to predict a number, for example the price of a house from its size and place. The simplest form fits a straight line to the data.",
    "a server": "A server is a program that waits for requests from other programs and answers them. The computer on which it runs is called a server too.",
    "a process": "A process is a running program with memory of its own. If one process crashes, the others go on. Processes talk to each other through sockets, pipes or shared memory.",
    "a thread": "A thread is a line of execution inside a process. Threads of one process share its memory, which makes them light, but they must take care not to disturb each other.",
    "a database": "A database stores data so that it can be found, changed and kept safe. Most databases keep tables with rows and columns and are asked in the language SQL.",
    "SQL": "SQL is the language of relational databases. With it one creates tables, adds and changes rows, and asks questions that combine several tables.",
    "Python": "Python is a programming language that is easy to read. It has a large library and many packages, and it is the most used language in machine learning.",
    "Linux": "Linux is a free operating system kernel that runs on phones, laptops and most servers. Together with other free software it makes a whole system.",
    "Docker": "Docker packs a program with everything it needs into an image. A container started from the image runs in the same way on every machine.",
    "Kubernetes": "Kubernetes runs containers on a cluster of machines. It starts them, restarts them when they fail, spreads the load and rolls out new versions.",
    "an algorithm": "An algorithm is a precise list of steps that solves a problem. A good algorithm is correct, ends in finite time and uses little time and memory.",
    "a compiler": "A compiler translates a program from one language into another, usually from source code into machine code. It checks the program for errors and makes it faster.",
    "a cache": "A cache keeps results that are needed often in a fast place, so that they need not be computed or fetched again. It must know when its content is out of date.",
    "open source": "Open source means that the source code of a program is public and that everybody may use, change and share it under the terms of its licence.",
    "a benchmark": "A benchmark measures how fast or how good a system is on a fixed task, so that systems can be compared. A fair benchmark says on which machine and with which versions it was run.",
}  # fmt: skip

SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hello!", "Hello", "Hi", "Hi!", "Hey", "Hi there!", "Good day!"), "Hello! How can I help you?"),
    (("Good morning!", "Good morning"), "Good morning! What can I do for you?"),
    (("Good evening!", "Good evening"), "Good evening! What can I do for you?"),
    (("How are you?", "How are you doing?", "How is it going?"), "I am fine, thank you. How can I help you?"),
    (("Thank you!", "Thanks!", "Thanks", "Thank you very much."), "You are welcome!"),
    (("Goodbye!", "Bye!", "Bye", "See you!"), "Goodbye! Have a nice day."),
    (
        ("What can you do?", "What are you able to do?", "How can you help me?", "Help"),
        "I can calculate, sort, count, convert units and dates, extract fields as JSON, call tools, answer from a given context, "
        "tell short stories and answer questions about Vorta.",
    ),
    (("Are you a robot?", "Are you human?", "Are you a person?"), "I am a small language model, not a person."),
    (
        ("Do you like music?", "Do you have hobbies?", "Do you have feelings?"),
        "I am a program, so I have no feelings, but I like to help.",
    ),
    (
        ("Tell me a joke.", "Do you know a joke?"),
        "Why did the token cross the road? Because the next one was already there.",
    ),
    (("OK", "Okay.", "I see.", "Good."), "Is there anything else that I can do for you?"),
    (("What is the meaning of life?", "What is the answer to everything?"), "Some say that it is 42."),
    (("Ping", "Test", "This is a test."), "I am here and ready."),
    (("Who made you?", "Who created you?", "Who built you?"), "I was trained by the Vorta project."),
    (("Can you speak German?", "Which languages do you speak?", "Do you speak French?"), "I only know English."),
    (("How old are you?", "When were you born?"), "I am a model, so I have no age."),
)


def definition(rng: Random) -> Draft:
    """A term, asked for in a few ways."""
    term = rng.choice(list(DEFINITIONS))
    verb = "are" if term == "embeddings" else "is"
    question = rng.choice(
        (
            f"What {verb} {term}?",
            f"What {verb} {term}?",
            f"What {verb} {term}?",
            f"Explain {term}.",
            f"Define {term}.",
            f"Explain what {term} is.",
        )
    )
    return Draft(key=question, question=question, answer=DEFINITIONS[term])


def small_talk(rng: Random) -> Draft:
    """A greeting or another short exchange."""
    questions, answer = rng.choice(SMALL_TALK)
    question = rng.choice(questions)
    return Draft(key=question, question=question, answer=answer)
